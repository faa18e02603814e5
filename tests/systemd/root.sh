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
# As udev would make them.
node() { [ ! -e "/dev/$1" ] || { mknod -m "$2" "dev/$1" c "$3" "$4" && chgrp "${5:-root}" "dev/$1"; }; }
node null 666 1 3; node zero 666 1 5; node full 666 1 7; node random 666 1 8; node urandom 666 1 9; node tty 666 5 0
node net/tun 666 10 200
node kvm 660 10 232
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
