use super::*;

const CONSOLE: Facts = Facts { console: true, serial: false };
const SERIAL: Facts = Facts { console: false, serial: true };

#[test]
fn additions_come_first_and_depend_on_the_machine() {
    assert_eq!(
        complete("quiet", CONSOLE, 2047).unwrap(),
        "console=hvc0 8250.nr_uarts=0 pci=noearly reboot=acpi tsc=nowatchdog quiet"
    );
    assert_eq!(complete("", SERIAL, 2047).unwrap(), "console=ttyS0 pci=noearly reboot=acpi tsc=nowatchdog");
    assert_eq!(
        complete("a -- b", CONSOLE, 2047).unwrap(),
        "console=hvc0 8250.nr_uarts=0 pci=noearly reboot=acpi tsc=nowatchdog a -- b"
    );
}

#[test]
fn what_the_user_set_stays() {
    let user = "console=tty0 8250.nr-uarts=2 pci=nomsi reboot=t tsc=reliable";
    assert_eq!(complete(user, CONSOLE, 2047).unwrap(), user);
    // After `--` it is init's word, not the kernel's.
    assert!(complete("-- console=x", CONSOLE, 2047).unwrap().starts_with("console=hvc0 "));
    assert!(complete("netconsole=x", CONSOLE, 2047).unwrap().starts_with("console=hvc0 "));
}

#[test]
fn a_line_the_kernel_would_cut_is_refused() {
    let user = "x".repeat(2010);
    let error = complete(&user, CONSOLE, 2047).unwrap_err();
    assert_eq!(error, TooLong { length: 2078, added: 68, limit: 2047 });
    assert!(complete(&"x".repeat(1980), SERIAL, 2047).is_ok());
}

#[test]
fn the_last_panic_timeout_counts() {
    assert_eq!(panic_timeout("quiet"), 0);
    assert_eq!(panic_timeout("panic=5 panic=-1"), -1);
    assert_eq!(panic_timeout("panic=x -- panic=3"), 0);
}
