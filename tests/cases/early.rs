//! What cannot work fails before anything has started, and says what, which value, and what to do.

use std::path::Path;

use anyhow::ensure;
use strata_rig::Kvm;
use strata_tests::strata::Machine;
use strata_tests::{Case, Context, account, net, process};

/// The cases of this file.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::kvm("early::not_a_kernel", not_a_kernel),
        Case::kvm("early::no_permission_for_kvm", no_permission_for_kvm),
        Case::kvm("early::image_in_use", image_in_use),
        Case::kvm("early::missing_things", missing_things),
        Case::kvm("early::too_many_vcpus", too_many_vcpus),
        Case::kvm("early::too_little_memory", too_little_memory),
        Case::kvm("early::wrong_command_lines_end_with_2", wrong_command_lines_end_with_2),
        Case::kvm("early::name_taken", name_taken),
    ];
    if Kvm::probe() == Kvm::NoHardware {
        cases.push(Case::host("early::kvm_without_hardware", kvm_without_hardware));
    }
    cases
}

fn fails(machine: Machine<'_>, code: i32, words: &[&str]) -> anyhow::Result<()> {
    let mut vm = machine.start()?;
    vm.expect_exit(code)?;
    let said = vm.errors.so_far();
    for word in words {
        ensure!(said.contains(word), "{word:?} is not in what it said:\n{said}");
    }
    ensure!(!said.contains("panicked"), "{said}");
    Ok(())
}

fn not_a_kernel(context: &Context) -> anyhow::Result<()> {
    for (name, content) in [
        ("text", b"not a kernel at all\n".repeat(1000)),
        ("empty", Vec::new()),
        ("elf", b"\x7fELF\x02\x01\x01".to_vec()),
    ] {
        let path = context.file(name);
        std::fs::write(&path, content)?;
        fails(context.machine("")?.kernel(&path), 1, &["kernel", &path.display().to_string()])?;
    }
    Ok(())
}

fn no_permission_for_kvm(context: &Context) -> anyhow::Result<()> {
    let machine = context.machine("")?;
    let outsider = account::outsider(context, &[])?;
    let mut vm = machine.start_by(&outsider)?;
    vm.expect_exit(1)?;
    let said = vm.errors.so_far();
    ensure!(said.contains("permission") && said.contains("/dev/kvm"), "{said}");
    Ok(())
}

fn image_in_use(context: &Context) -> anyhow::Result<()> {
    let disk = context.disk("disk.img", 8)?;
    let first = context.machine("say ready; read go")?.disk(&disk, "").name("first").start()?;
    first.guest("ready")?;
    let second = context.machine("")?.disk(&disk, "").name("second");
    let mut second = second.start()?;
    second.expect_exit(1)?;
    let said = second.errors.so_far();
    ensure!(said.contains("disk.img") && said.contains("in use"), "{said}");
    ensure!(!said.contains("again"), "a disk that cannot be had was asked for again:\n{said}");
    context.start("strata", &["stop", "first", "--now"])?.expect_exit(0)
}

fn missing_things(context: &Context) -> anyhow::Result<()> {
    let machine = || context.machine("");
    fails(machine()?.net("lo", ""), 1, &["lo", "no tap"])?;
    fails(
        machine()?.disk(Path::new("/nonexistent/disk.img"), ""),
        1,
        &["/nonexistent/disk.img", "no such file"],
    )?;
    fails(machine()?.kernel(Path::new("/nonexistent/vmlinuz")), 1, &["/nonexistent/vmlinuz"])?;
    fails(machine()?.arg("--device").arg("socket=/nonexistent.sock,type=rng"), 1, &["/nonexistent.sock"])?;
    // A tap without the right flags is found by vhost-net, after the preflight.
    let tap = net::Tap::new("tap0", false)?;
    fails(machine()?.net(tap.name(), ",queues=2").cpus(2), 1, &["tap0", "multi_queue"])
}

fn too_many_vcpus(context: &Context) -> anyhow::Result<()> {
    let mut vm = context.machine("")?.cpus(5000).start()?;
    let status = vm.wait()?;
    ensure!(matches!(status.code(), Some(1 | 2)), "ended with {status}\n{}", vm.tails());
    let said = vm.errors.so_far();
    ensure!(said.contains("5000") && said.contains("cpus"), "{said}");
    Ok(())
}

fn too_little_memory(context: &Context) -> anyhow::Result<()> {
    let mut vm = context.machine("")?.memory("4M").start()?;
    let status = vm.wait()?;
    ensure!(matches!(status.code(), Some(1 | 2)), "ended with {status}\n{}", vm.tails());
    let said = vm.errors.so_far();
    ensure!(said.contains("memory") && said.contains('4'), "{said}");
    // Enough for the rules, too little for this kernel and its initramfs.
    fails(context.machine("")?.memory("32M"), 1, &["memory"])
}

fn wrong_command_lines_end_with_2(context: &Context) -> anyhow::Result<()> {
    fails(context.machine("")?.memory("lots"), 2, &["memory", "lots"])?;
    fails(context.machine("")?.arg("--disk").arg("pth=x"), 2, &["pth"])?;
    fails(context.machine("")?.arg("--frobnicate"), 2, &["frobnicate"])?;
    let file = context.file("machine.toml");
    std::fs::write(&file, "kernel = \"vmlinuz\"\nmemroy = \"1G\"\n")?;
    let mut run = context.start("strata", &["run", &file.display().to_string()])?;
    run.expect_exit(2)?;
    ensure!(run.errors.so_far().contains("memroy"), "{}", run.tails());
    for program in ["vmm", "vhost-blk", "vhost-net"] {
        context.start(program, &["--frobnicate"])?.expect_exit(2)?;
    }
    Ok(())
}

fn name_taken(context: &Context) -> anyhow::Result<()> {
    let first = context.machine("say ready; read go")?.name("twin").start()?;
    first.guest("ready")?;
    fails(context.machine("")?.name("twin"), 1, &["twin", "runs already"])?;
    context.start("strata", &["stop", "twin", "--now"])?.expect_exit(0)?;
    process::until("the first machine's end", || Ok(!first.run_dir().exists()))
}

/// On this host `/dev/kvm` is there and nothing runs in it; it must be said, not found out by a hanging guest.
fn kvm_without_hardware(context: &Context) -> anyhow::Result<()> {
    fails(context.machine("")?, 1, &["vmx", "svm"])
}
