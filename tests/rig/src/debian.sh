#!/bin/sh
# Run by mmdebstrap on the new root file system, $1.
set -e
cd "$1"
echo strata-demo > etc/hostname
echo '127.0.0.1 localhost strata-demo' > etc/hosts
echo '/dev/vda / ext4 defaults 0 1' > etc/fstab
mkdir -p etc/systemd/network
printf '[Match]\nType=ether\n[Network]\nAddress=10.77.0.2/24\n' > etc/systemd/network/10-nic.network
chroot . systemctl -q enable systemd-networkd
chroot . systemctl -q disable systemd-networkd-wait-online || true
chroot . systemctl -q mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
  e2scrub_reap.service systemd-random-seed.service getty-static.service
chroot . systemctl -q disable getty@tty1.service
chroot . passwd -qd root
printf 'export PAGER=cat PS1="# " TERM=dumb; stty cols 160\n' > root/.bashrc
rm -f root/.profile; printf '. /root/.bashrc\n' > root/.profile
: > etc/motd; : > etc/machine-id
rm -rf var/cache/apt/* var/lib/apt/lists/* usr/share/doc usr/share/man usr/share/locale
