#!/bin/busybox sh
# Init of a test guest: the console, one line, the drivers, the case's script, power off.
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
modprobe -qa @EARLY@
say() { echo "guest: $*"; }
# The power button is heard from `button` on, and `pressed` waits for it. Pressed while nobody has its device open, it is
# not told to anyone: so a guest says that it is ready between the two.
button() { exec 9</dev/input/event0; }
pressed() { head -c 24 <&9 >/dev/null; say button; }
# A console with control queues (QEMU's) comes a moment after its driver, and its node a moment before it can be opened;
# with none at all the serial port serves.
C=/dev/hvc0; n=0
opens() { [ -c $C ] && (: <$C) 2>/dev/null; }
until opens || [ $n -ge 200 ]; do usleep 10000; n=$((n+1)); done
opens || C=/dev/ttyS0
exec <$C >$C 2>&1
stty -echo
say init
# Options come from the kernel's command line, as virtio_blk.poll_queues=1.
modprobe -qa @DRIVERS@
say drivers
. /case.sh
say end
poweroff -f
