# Serves a file on a file system on the disk, and writes to it until the power is cut.
. /scenarios/cut.sh
mkfs.ext4 -q -F /dev/vda
mount_ext4 /dev/vda /mnt
truncate -s 16M /mnt/disk
sync
serve_disk /mnt/disk
