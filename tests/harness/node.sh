#!/bin/sh
# A real systemd as process 1 of namespaces of its own, over a copy-on-write view of a root file system.
#   node.sh FOLDER TREE CGROUP     its root is mounted on FOLDER/root; CGROUP (an empty cgroup v2) becomes its root cgroup
# As root. Killing the process that this becomes ends all of it.
set -e
folder=$1 tree=$2 cgroup=$3
case $4 in
'') exec unshare --mount --pid --uts --ipc --net --fork --kill-child --propagation private sh "$0" "$folder" "$tree" "$cgroup" cgroup ;;
# Alone in its cgroup: one with controllers for its children may have no processes of its own but the namespace's root.
cgroup)
    echo 0 > "$cgroup/cgroup.procs"
    exec unshare --cgroup sh "$0" "$folder" "$tree" "$cgroup" inside ;;
esac
mount -t tmpfs tmpfs "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/root"
mount -t overlay overlay -o "lowerdir=$tree,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
cd "$folder/root"
mkdir -p oldroot
mount -t proc proc proc
# Read-only, as in any container: that is how networkd knows that there is no udev to wait for.
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm dev/net
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
# As udev would make them; kvm's group comes with the package.
node() { [ ! -e "/dev/$1" ] || mknod -m "$2" "dev/$1" c "$3" "$4"; }
node null 666 1 3; node zero 666 1 5; node full 666 1 7; node random 666 1 8; node urandom 666 1 9; node tty 666 5 0
node net/tun 666 10 200
node kvm 660 10 232
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
hostname strata-node
pivot_root . oldroot
umount -l oldroot
# In a container systemd leaves this to who made it; credentials are mounted by a child of its.
mount --make-rshared /
exec env -i container=strata-test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --log-target=journal
