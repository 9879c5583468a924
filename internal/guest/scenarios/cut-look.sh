# After a cut: the journal is replayed, and the file looked at.
. /scenarios/cut.sh
mount_ext4 /dev/vda /mnt
nbd-power-cut verify /mnt/disk --seed "$seed" --log /dev/vdb || fail "it is not all there"
umount /mnt
check_ext4 /dev/vda
