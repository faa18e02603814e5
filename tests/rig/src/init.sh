#!/bin/busybox sh
# The rig's init: this host's file system with a tmpfs over it, one command in it, its status, power off.
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in $(cat /mod/order); do insmod /mod/$m || echo "rig: module $m did not load"; done
P=trans=virtio,version=9p2000.L,msize=524288
mount -t 9p -o $P,cache=loose,ro host /host || { echo "rig: the host's files cannot be mounted"; poweroff -f; }
mount -t tmpfs -o size=75% rw /rw; mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work root /root
R=/root
for d in proc sys dev; do mkdir -p $R/$d; mount --move /$d $R/$d; done
mkdir -p $R/dev/pts $R/dev/shm; ln -s /proc/self/fd $R/dev/fd
mount -t devpts -o gid=5,mode=620,ptmxmode=666 pts $R/dev/pts
mount -t tmpfs shm $R/dev/shm; mount -t tmpfs -o mode=755 run $R/run
mount -t cgroup2 cgroup $R/sys/fs/cgroup
mount -t debugfs debug $R/sys/kernel/debug 2>/dev/null; mount -t tracefs trace $R/sys/kernel/tracing
mkdir -p $R/run/out; mount -t 9p -o $P out $R/run/out || { echo "rig: no folder for results"; poweroff -f; }
# As udev would: users of group kvm may run machines, anyone may make a tap in a namespace of its own.
G=$(awk -F: '$1 == "kvm" { print $3 }' $R/etc/group)
chown 0:${G:-0} $R/dev/kvm; chmod 660 $R/dev/kvm; chmod 666 $R/dev/net/tun
ip link set lo up
for p in $R/sys/class/virtio-ports/*; do
  [ "$(cat $p/name)" = rig.output ] && O=dev/${p##*/}
done
# As a real root, not in a chroot of the initramfs: there the kernel makes no user namespaces for users.
cd $R; mount --move . /
{ chroot . /bin/bash /run/out/.command </dev/null 2>&1; echo $? > run/out/.status; } | cat > $O
sync; poweroff -f
