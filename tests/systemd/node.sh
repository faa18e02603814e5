#!/bin/sh
# A node under a real systemd: installs the package, starts what it can, and says `ok WHAT` or `FAILED WHAT` for each
# thing that has to hold. Ends with 0 if all did.
#   node.sh PACKAGE [KERNEL INITRD]     without a kernel: sockets and disks only, no guest
# As root, with systemd (252 or newer), iproute2 and util-linux. Nothing of this machine's own is changed.
here=$(cd "$(dirname "$0")" && pwd)
package=$1 kernel=$2 initrd=$3
folder=$(mktemp -d)
"$here/root.sh" "$folder" > "$folder.log" 2>&1 &
outer=$!
failed=0 pid=
end() { [ -z "$pid" ] || kill -KILL "$pid" 2> /dev/null; wait "$outer" 2> /dev/null; rmdir "$folder"; rm -f "$folder.log"; }
trap end EXIT
trap 'exit 1' INT TERM HUP

# until SECONDS COMMAND...: waits for a condition.
until_() { left=$(($1 * 5)); shift
    while ! "$@" > /dev/null 2>&1; do left=$((left - 1)); [ "$left" -gt 0 ] || return 1; sleep 0.2; done; }
in_() { nsenter -t "$pid" -a "$@"; }
# what COMMAND...: must succeed.
what() { name=$1; shift
    if "$@" > "/tmp/what.$$" 2>&1; then echo "ok $name"; else echo "FAILED $name"; cat "/tmp/what.$$"; failed=1; fi; rm -f "/tmp/what.$$"; }
active() { in_ systemctl is-active -q "$@"; }
inactive() { ! active "$@"; }
said() { in_ journalctl -q --no-pager -o cat -u "$1" | grep -q "$2"; }
count() { in_ journalctl -q --no-pager -o cat -u "$1" | grep -c "$2"; }
main_pid() { in_ systemctl show -P MainPID "$1"; }

booted() { pid=$(pgrep -P "$outer" | head -n 1); [ -n "$pid" ] && in_ systemctl is-system-running | grep -Eq 'running|degraded'; }
until_ 60 booted || { echo "FAILED systemd does not start"; cat "$folder.log"; exit 1; }
# The shell's own function ran in a subshell of nothing: it is set here.
pid=$(pgrep -P "$outer" | head -n 1)
echo "ok systemd $(in_ systemctl --version | sed -n '1s/systemd \([0-9]*\).*/\1/p') is process 1"
root=/proc/$pid/root

cp "$package" "$root/tmp/strata.deb"
what "the package installs" in_ dpkg --force-depends --no-triggers -i /tmp/strata.deb
what "it makes the accounts" in_ id strata-blk
# udev's rule, which came before the group did.
[ ! -e "$root/dev/kvm" ] || in_ chgrp kvm /dev/kvm
what "systemd understands the units as installed" in_ systemd-analyze verify --man=no strata-vm@web.service strata.target

in_ ip tuntap add tap-web mode tap group strata-net
in_ ip link set tap-web up
in_ truncate -s 64M /var/lib/strata/web.img
in_ chown strata-blk: /var/lib/strata/web.img
cat > "$root/etc/strata/machines/web.toml" <<TOML
kernel = "/var/lib/strata/vmlinuz"
initrd = "/var/lib/strata/initrd"
cmdline = "console=hvc0 panic=-1 quiet"
memory = "256M"
stop_timeout = 60
[[disk]]
path = "web.img"
serial = "it is 100% web"
[[net]]
tap = "tap-web"
TOML
sed -i 's#path = "web.img"#path = "/var/lib/strata/web.img"#' "$root/etc/strata/machines/web.toml"
echo 'cpus = many' > "$root/etc/strata/machines/wrong.toml"
in_ systemctl daemon-reload
what "a machine file becomes units" in_ systemctl cat vhost-blk@web-disk0.service
what "a wrong machine file says so in its unit" sh -c "nsenter -t $pid -a systemctl show -P Description strata-vm@wrong | grep -q 'cpus\|TOML'"
what "a wrong machine does not start" sh -c "! nsenter -t $pid -a systemctl start strata-vm@wrong"

disk=vhost-blk@web-disk0 nic=vhost-net@web-net0 vm=strata-vm@web
if [ -z "$kernel" ]; then
    # Without a machine nobody needs them: a runtime drop-in keeps them for a look.
    for unit in "$disk.socket" "$disk.service" "$nic.socket" "$nic.service"; do
        mkdir -p "$root/run/systemd/system/$unit.d"
        printf '[Unit]\nStopWhenUnneeded=no\n' > "$root/run/systemd/system/$unit.d/99-look.conf"
    done
    in_ systemctl daemon-reload
    what "sockets listen" in_ systemctl start "$disk.socket" "$nic.socket"
    what "nobody serves before somebody connects" inactive "$disk.service"
    # Whoever connects starts the service; the vmm's account may.
    for unit in disk0 net0; do
        in_ python3 -c "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/strata/web/$unit.sock')"
    done
    what "the disk's socket starts its service" until_ 20 active "$disk.service"
    what "the NIC's socket starts its service" until_ 20 active "$nic.service"
    what "the service says what it serves" sh -c "nsenter -t $pid -a systemctl show -P StatusText $disk | grep -q web.img"
    process=$(main_pid "$disk")
    what "it has a filter, no capabilities, no root" sh -c "nsenter -t $pid -a cat /proc/$process/status | tr -d '\t' | grep -Ec '^(Seccomp:2|NoNewPrivs:1|CapEff:0000000000000000|CapPrm:0000000000000000)' | grep -qx 4"
    what "it is killed and comes back" in_ systemctl kill -s KILL "$disk.service"
    changed() { now=$(main_pid "$disk"); [ "$now" != 0 ] && [ "$now" != "$process" ] && active "$disk.service"; }
    what "as another process" until_ 20 changed
    what "it stops cleanly" in_ systemctl stop "$disk.socket" "$disk.service"
    what "stopping was no failure" sh -c "nsenter -t $pid -a systemctl show -P Result $disk | grep -qx success"
else
    cp "$kernel" "$root/var/lib/strata/vmlinuz"
    cp "$initrd" "$root/var/lib/strata/initrd"
    chmod 644 "$root/var/lib/strata/vmlinuz" "$root/var/lib/strata/initrd"
    what "enable --now starts the machine" in_ systemctl enable --now "$vm"
    what "its disk and NIC are active" active "$disk.service" "$nic.service"
    what "it is ready only when the guest runs" sh -c "nsenter -t $pid -a systemctl show -P StatusText $vm | grep -q running"
    what "the guest does its work" until_ 120 said "$vm" "round 2 equal"
    what "strata finds it" sh -c "nsenter -t $pid -a strata ps | grep -q '^web .*running'"
    rounds=${ROUNDS:-20} n=0
    while [ $n -lt "$rounds" ]; do
        n=$((n + 1))
        if [ $((n % 2)) = 0 ]; then in_ systemctl restart "$disk"; else in_ systemctl kill -s KILL "$disk"; fi
        before=$(count "$vm" equal)
        more() { [ "$(count "$vm" equal)" -gt "$((before + 1))" ]; }
        until_ 60 more || { echo "FAILED the guest stands still after time $n"; failed=1; break; }
    done
    echo "disk killed or restarted $n times, $(count "$vm" equal) rounds of verified input and output, $(count "$vm" DIFFERENT) different, $(count "$vm" 'I/O error') errors"
    what "no round differed" sh -c "! nsenter -t $pid -a journalctl -q -o cat -u $vm | grep -q 'DIFFERENT\|I/O error'"
    what "an upgrade restarts the disk in place" in_ dpkg --force-depends --no-triggers -i /tmp/strata.deb
    before=$(count "$vm" equal)
    what "and the guest goes on" until_ 60 more
    what "stop presses the power button" in_ systemctl stop "$vm"
    what "the guest saw it" said "$vm" "guest: button"
    what "the machine ended well" sh -c "nsenter -t $pid -a systemctl show -P Result $vm | grep -qx success"
    what "its disk and NIC went with it" until_ 20 inactive "$disk.service" "$disk.socket" "$nic.service"
fi
if [ $failed = 0 ]; then what "nothing of it is left when it is purged" in_ dpkg --no-triggers --purge strata; fi
if [ $failed != 0 ]; then in_ journalctl --no-pager -q -n 80 | cat; fi
exit $failed
