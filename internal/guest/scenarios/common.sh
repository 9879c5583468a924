# What scenarios share. A step that fails ends the scenario.

set -u
server=

step() {
    echo "--- $*"
}

fail() {
    echo "FAILED: $*"
    exit 1
}

# refused TEXT COMMAND...: the command fails, and says that.
refused() {
    local text=$1
    shift
    if "$@" >/tmp/out 2>/tmp/err; then fail "$* succeeded"; fi
    grep -q "$text" /tmp/err || fail "$*: $(cat /tmp/err)"
}

# Starts a server and sets $server, its process, and $uri.
serve_unix() {
    rm -f /run/socket
    nbd serve --unix /run/socket "$@" >/tmp/serving 2>>/tmp/server.log &
    server=$!
    uri='nbd+unix:///?socket=/run/socket'
    wait_for_server
}

serve_tcp() {
    nbd serve --ip-addr 127.0.0.1 --port 10809 "$@" >/tmp/serving 2>>/tmp/server.log &
    server=$!
    uri=nbd://127.0.0.1
    wait_for_server
}

wait_for_server() {
    local tries=0
    until [ -s /tmp/serving ]; do
        tries=$((tries + 1))
        [ $tries -lt 600 ] || fail "the server does not start: $(cat /tmp/server.log)"
        usleep 100000
    done
    rm -f /tmp/serving
}

stop_server() {
    kill -TERM "$server"
    wait "$server"
}

# check_ext4 DISK: it is in order.
check_ext4() {
    e2fsck -fn "$1" >/tmp/fsck.log 2>&1 || fail "fsck of $1: $? $(cat /tmp/fsck.log)"
}

mount_ext4() {
    modprobe ext4
    mount -t ext4 "$1" "$2" || fail "mount $1"
}

# verify FILE SIZE: writes it all and reads it back.
verify() {
    fio --name=verify --filename="$1" --size="$2" --rw=randwrite --bs=4k-64k --ioengine=psync --direct=1 \
        --verify=crc32c --verify_fatal=1 --fsync=64 >/tmp/verify.log 2>&1 || fail "fio: $(cat /tmp/verify.log)"
}

# verify_until_stopped FILE SIZE: the same again and again until /tmp/stop is there.
verify_until_stopped() {
    rm -f /tmp/stop
    until [ -e /tmp/stop ]; do
        fio --name=verify --filename="$1" --size="$2" --rw=randrw --bs=4k-64k --ioengine=psync --direct=1 \
            --verify=crc32c --verify_fatal=1 --verify_backlog=64 --fsync=32 --time_based --runtime=3 \
            >/tmp/verify.log 2>&1 || return 1
    done
}
