# The kernel's client over TLS, whose bytes `nbd attach` carries.

. /scenarios/common.sh
modprobe nbd nbds_max=2
modprobe tls && echo "this kernel has TLS of its own (CONFIG_TLS), which is not used"

tls() {
    serve_tcp --tls-certificates /etc/tls "$@"
    uri='nbds://localhost/?tls-certificates=/etc/tls'
}

# attached ARGUMENT...: attaches in the background and sets $keeper and $device.
attached() {
    rm -f /tmp/device
    nbd attach "$@" "$uri" >/tmp/device 2>>/tmp/keeper.log &
    keeper=$!
    until [ -s /tmp/device ]; do
        kill -0 $keeper || fail "nbd attach: $(cat /tmp/keeper.log)"
        usleep 100000
    done
    device=$(cat /tmp/device)
}

step "a file system over TLS, by two connections"
truncate -s 48M /tmp/disk
tls /tmp/disk
attached --connections 2
mkfs.ext4 -q -F "$device"
mount_ext4 "$device" /mnt
verify /mnt/file 8M
kill -TERM $keeper
until grep -q "is mounted on /mnt" /tmp/keeper.log; do usleep 100000; done
umount /mnt
nbd detach "$device"
wait $keeper || fail "the keeper failed: $(cat /tmp/keeper.log)"
check_ext4 /tmp/disk

step "without --persist the device ends with its server"
attached
stop_server
wait $keeper && fail "the keeper did not notice"
grep -q "has no connection any more, and was detached" /tmp/keeper.log || fail "$(cat /tmp/keeper.log)"
[ -z "$(nbd devices)" ] || fail "it is still attached"

step "with --persist it outlives the server, mounted and in use"
tls /tmp/disk
attached --persist --timeout 5
mount_ext4 "$device" /mnt
verify_until_stopped /mnt/restarts 4M &
load=$!
before=$(grep -c "connected again" /tmp/keeper.log)
for round in 1 2 3 4; do
    if [ $((round % 2)) = 0 ]; then kill -KILL "$server"; wait "$server"; else stop_server; fi
    tls /tmp/disk
    until [ "$(grep -c "connected again" /tmp/keeper.log)" -ge $((before + round)) ]; do
        kill -0 $keeper || fail "the keeper ended: $(cat /tmp/keeper.log)"
        usleep 100000
    done
    sleep 1
done
kill -0 $load || fail "fio ended too early: $(tail -n 30 /tmp/verify.log)"
touch /tmp/stop
wait $load || fail "fio's verification: $(tail -n 30 /tmp/verify.log)"
dmesg | grep -E "EXT4-fs.*error|I/O error" && fail "the kernel saw errors"
umount /mnt
nbd detach "$device"
wait $keeper || fail "the keeper failed: $(cat /tmp/keeper.log)"
check_ext4 /tmp/disk
stop_server
