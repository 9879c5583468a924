# What the scenarios of power cuts share: the disk is /dev/vda.
. /scenarios/common.sh
modprobe virtio_pci
modprobe virtio_blk
seed=$(sed -n 's/.*seed=\([0-9]*\).*/\1/p' /proc/cmdline)

# Each adapter gets its turn.
serve_disk() {
    case $((seed % 2)) in
    0) runtime=tokio ;;
    *) runtime=blocking ;;
    esac
    serve_unix --runtime $runtime "$1"
    exec nbd-power-cut write "$uri" --seed "$seed"
}
