# Virtual machine sockets, by the loopback of the guest's kernel: CID 1 is the machine itself.

. /scenarios/common.sh
modprobe vsock_loopback
modprobe nbd nbds_max=2

for runtime in tokio blocking; do
    step "copy and compare, $runtime"
    dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null
    truncate -s 8M /tmp/disk
    nbd serve --runtime $runtime --vsock 0 /tmp/disk >/tmp/serving 2>>/tmp/server.log &
    server=$!
    until [ -s /tmp/serving ]; do
        kill -0 $server || fail "the server does not start: $(cat /tmp/server.log)"
        usleep 100000
    done
    uri=$(head -n1 /tmp/serving)
    echo "$uri"
    nbd info "$uri" | grep -q 8388608 || fail "nbd info"
    nbd copy /tmp/data "$uri" || fail "nbd copy"
    cmp /tmp/data /tmp/disk || fail "the copy differs"

    step "as a block device"
    rm -f /tmp/device
    nbd attach "$uri" >/tmp/device 2>/tmp/keeper.log &
    keeper=$!
    until [ -s /tmp/device ]; do
        kill -0 $keeper || fail "nbd attach: $(cat /tmp/keeper.log)"
        usleep 100000
    done
    cmp /tmp/data "$(cat /tmp/device)" || fail "the device differs"
    nbd detach --all
    wait $keeper || fail "the keeper failed: $(cat /tmp/keeper.log)"
    stop_server
done

step "refusals"
refused "vsock 1:77" nbd info nbd+vsock://1:77
nbd serve --vsock 1:78 memory:1M >/dev/null 2>&1 &
server=$!
until nbd info nbd+vsock://1:78 >/dev/null 2>&1; do usleep 100000; done
refused "cannot listen on vsock 1:78" nbd serve --vsock 1:78 memory:1M
stop_server
