#!/bin/sh
# A real systemd as process 1 of namespaces of its own, over a copy-on-write view of this machine's root.
#   root.sh FOLDER      starts it; its process id is in FOLDER/pid, its root in FOLDER/root
# Run it as root; end it by killing that process: everything else goes with it.
set -e
folder=$1
if [ "$2" != inside ]; then
    mkdir -p "$folder"
    exec unshare --mount --pid --uts --ipc --cgroup --net --fork --kill-child --propagation private "$0" "$folder" inside
fi
mount -t tmpfs tmpfs "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
cd "$folder/root"
mkdir -p proc sys dev run tmp oldroot
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs dev
mkdir dev/pts dev/shm dev/net
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
for node in null zero full random urandom tty kvm net/tun; do
    [ -e "/dev/$node" ] && touch "dev/$node" && mount --bind "/dev/$node" "dev/$node"
done
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
# Only what is under test: nothing of what this machine itself has enabled.
rm -rf etc/systemd/system/*.wants
ln -sf /lib/systemd/system/multi-user.target etc/systemd/system/default.target
for unit in systemd-udevd systemd-networkd systemd-resolved systemd-timesyncd getty@tty1 console-getty systemd-logind; do
    ln -sf /dev/null "etc/systemd/system/$unit.service"
done
echo strata-test > etc/hostname
: > etc/machine-id
hostname strata-test
pivot_root . oldroot
umount -l oldroot
exec env -i container=strata-test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --log-target=journal
