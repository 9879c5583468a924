# The kernel's client, attached by `nbd attach`, to servers inside of the guest.

. /scenarios/common.sh

step "without the module"
refused "modprobe nbd" nbd attach nbd+unix:///?socket=/run/none
modprobe nbd nbds_max=2
refused "none" nbd attach 'nbd+unix:///?socket=/run/none'
[ -z "$(nbd devices)" ] || fail "no device is attached"

step "attach by a Unix socket; the kernel picks the device"
truncate -s 64M /tmp/disk
serve_unix /tmp/disk
device=$(nbd attach "$uri")
[ "$device" = /dev/nbd0 ] || fail "the device is $device"
nbd devices
nbd devices | grep -q "^/dev/nbd0 67108864 rw nbd+unix:///?socket=/run/socket$" || fail "nbd devices"
[ "$(cat /sys/block/nbd0/queue/logical_block_size)" = 512 ] || fail "block size"
refused "in use already" nbd attach "$uri" /dev/nbd0

step "a file system"
mkfs.ext4 -q -F /dev/nbd0
mount_ext4 /dev/nbd0 /mnt
refused "is mounted on /mnt" nbd detach /dev/nbd0
verify /mnt/file 8M
umount /mnt
check_ext4 /dev/nbd0
nbd detach /dev/nbd0
refused "is not attached" nbd detach /dev/nbd0
[ -z "$(nbd devices)" ] || fail "no device is attached any more"
check_ext4 /tmp/disk
stop_server

step "read-only, by TCP, as /dev/nbd5, which is not there yet"
serve_tcp --read-only /tmp/disk
[ "$(nbd attach "$uri" nbd5)" = /dev/nbd5 ] || fail "not nbd5"
[ "$(cat /sys/block/nbd5/ro)" = 1 ] || fail "it can be written"
mount -t ext4 -o ro /dev/nbd5 /mnt
cmp /mnt/file /mnt/file
umount /mnt
nbd devices --json | grep -q '"read-only": true' || fail "nbd devices --json"
nbd detach --all
stop_server

step "several connections"
serve_unix /tmp/disk
device=$(nbd attach --connections 4 "$uri")
verify "$device" 16M
grep -c . /sys/block/nbd0/pid >/dev/null
nbd detach "$device"
stop_server

step "detach under load"
serve_unix /tmp/disk
device=$(nbd attach "$uri")
fio --name=load --filename="$device" --rw=randrw --bs=4k --size=32M --direct=1 --time_based --runtime=600 \
    --ioengine=psync --numjobs=2 --continue_on_error=none >/tmp/load.log 2>&1 &
load=$!
until [ "$(awk '{ print $1 + $5 }' /sys/block/nbd0/stat)" -gt 200 ]; do usleep 100000; done
nbd detach "$device"
wait $load && fail "the load did not notice"
nbd devices | grep -q nbd0 && fail "it is still attached"
device=$(nbd attach "$uri")
dd if="$device" of=/dev/null bs=64k count=4 2>/dev/null || fail "it can't be attached again"
nbd detach "$device"
stop_server

step "a file system that outlives its server, ten times"
serve_unix /tmp/disk
nbd attach --persist --timeout 5 "$uri" >/tmp/device 2>/tmp/keeper.log &
keeper=$!
until [ -s /tmp/device ]; do usleep 100000; done
device=$(cat /tmp/device)
mount_ext4 "$device" /mnt
verify_until_stopped /mnt/restarts 8M &
load=$!
for round in 1 2 3 4 5 6 7 8 9 10; do
    if [ $((round % 2)) = 0 ]; then
        kill -KILL "$server"
        wait "$server"
    else
        stop_server
    fi
    usleep 300000
    serve_unix /tmp/disk
    until [ "$(grep -c "connected again" /tmp/keeper.log)" -ge $round ]; do
        kill -0 $keeper || fail "the keeper ended: $(cat /tmp/keeper.log)"
        usleep 100000
    done
    sleep 1
done
kill -0 $load || fail "fio ended too early: $(tail -n 30 /tmp/verify.log)"
touch /tmp/stop
wait $load || fail "fio's verification: $(tail -n 30 /tmp/verify.log)"
echo "connected again $(grep -c "connected again" /tmp/keeper.log) times"
dmesg | grep -E "EXT4-fs.*error|I/O error" && fail "the kernel saw errors"
umount /mnt
check_ext4 "$device"

step "it grows with the export"
truncate -s 96M /tmp/disk
kill -KILL "$server"
wait "$server"
serve_unix /tmp/disk
until [ "$(cat /sys/block/nbd0/size)" = 196608 ]; do usleep 100000; done
nbd detach "$device"
wait $keeper || fail "the keeper failed: $(cat /tmp/keeper.log)"
stop_server

step "no server comes back: requests fail after the timeout"
serve_unix /tmp/disk
device=$(nbd attach --dead-timeout 2 --timeout 2 "$uri")
kill -KILL "$server"
wait "$server"
dd if="$device" of=/dev/null bs=4k count=1 skip=500 iflag=direct 2>/dev/null && fail "it was read"
nbd detach --all

step "a command between brackets"
nbd attach [ nbd serve /tmp/disk ] >/tmp/device 2>/tmp/keeper.log &
keeper=$!
until [ -s /tmp/device ]; do usleep 100000; done
dd if="$(cat /tmp/device)" of=/dev/null bs=64k count=4 2>/dev/null || fail "it can't be read"
kill -TERM $keeper
wait $keeper || fail "the keeper failed: $(cat /tmp/keeper.log)"
[ -z "$(nbd devices)" ] || fail "it is still attached"
