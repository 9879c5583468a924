# What the scenarios of power cuts share: the disk is /dev/vda.
. /scenarios/common.sh
modprobe virtio_pci
modprobe virtio_blk
seed=$(sed -n 's/.*seed=\([0-9]*\).*/\1/p' /proc/cmdline)

# The kernel writes back what is dirty at once, rather than when it is flushed: a power cut finds it in the disk's cache.
echo 1 >/proc/sys/vm/dirty_writeback_centisecs
echo 1 >/proc/sys/vm/dirty_expire_centisecs
echo 4096 >/proc/sys/vm/dirty_background_bytes

# Each adapter gets its turn.
serve_disk() {
    case $((seed % 2)) in
    0) runtime=tokio ;;
    *) runtime=blocking ;;
    esac
    serve_unix --runtime $runtime "$1"
    exec nbd-power-cut write "$uri" --seed "$seed"
}
