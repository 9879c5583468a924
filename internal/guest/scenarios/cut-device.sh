# Serves the disk itself, and writes to it until the power is cut.
. /scenarios/cut.sh
serve_disk /dev/vda
