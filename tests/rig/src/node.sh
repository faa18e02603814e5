#!/bin/sh
# Run by mmdebstrap on the node's root file system, $1.
set -e
cd "$1"
echo strata-node > etc/hostname
echo '127.0.0.1 localhost strata-node' > etc/hosts
: > etc/fstab; : > etc/machine-id
# Only what is under test starts: no terminals, no timers, no time of day; and nothing that a first boot does.
rm -rf etc/systemd/system/*.wants
ln -sf /lib/systemd/system/multi-user.target etc/systemd/system/default.target
for unit in systemd-udevd.service systemd-resolved.service systemd-timesyncd.service systemd-logind.service \
  systemd-random-seed.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
  systemd-tmpfiles-clean.timer systemd-firstboot.service systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-networkd-wait-online.service getty.target \
  systemd-modules-load.service sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount remote-fs.target; do
  ln -sf /dev/null "etc/systemd/system/$unit"
done
rm -f etc/dpkg/dpkg.cfg.d/99mmdebstrap
rm -rf var/log/journal var/cache/apt/* var/lib/apt/lists/* usr/share/man usr/share/locale
touch etc/.updated var/.updated
