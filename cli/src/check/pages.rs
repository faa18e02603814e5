//! Judges huge pages: whether 2 MiB of guest memory can be mapped by one nested page fault instead of 512.

use super::facts::{Facts, Sandbox};
use super::line::Line;

const SHMEM: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// What guest memory without a hugetlbfs is made of.
pub(super) fn shared(facts: &Facts) -> Line {
    const TOPIC: &str = "huge pages";
    let Some(shmem) = facts.pages.shmem.as_deref() else {
        return Line::warning(
            TOPIC,
            "this kernel has no transparent huge pages: guest memory is made of 4 KiB pages",
        )
        .change("give machines a hugetlbfs (`hugetlbfs = \"/dev/hugepages\"`), or boot a kernel with them");
    };
    if shmem == "deny" {
        return Line::warning(
            TOPIC,
            "shmem_enabled is deny: no shared memory has huge pages, whatever asks for them",
        )
        .change("take the denial back; `never` still lets a mount of one's own ask")
        .command(format!("echo never > {SHMEM}"));
    }
    match &facts.sandbox {
        Sandbox::Works { huge: Ok(()) } => Line::ready(
            TOPIC,
            format!("guest memory gets transparent ones from a private tmpfs (shmem_enabled is {shmem})"),
        ),
        // A memfd with an madvise is what is left.
        Sandbox::Works { huge: Err(why) }
            if matches!(shmem, "always" | "within_size" | "advise" | "force") =>
        {
            Line::ready(
                TOPIC,
                format!("guest memory gets transparent ones: shmem_enabled is {shmem} ({why})"),
            )
        }
        Sandbox::Works { huge: Err(why) } => Line::warning(
            TOPIC,
            format!("guest memory is made of 4 KiB pages: {why}, and shmem_enabled is {shmem}"),
        )
        .change("let shared memory ask for huge pages")
        .command(format!("echo advise > {SHMEM}")),
        Sandbox::Refused(_) | Sandbox::Untried(_) => Line::info(
            TOPIC,
            format!(
                "not tried: the sandbox in which a tmpfs of one's own is made does not work (shmem_enabled is {shmem})"
            ),
        ),
    }
}

pub(super) fn reserved(facts: &Facts) -> Vec<Line> {
    const TOPIC: &str = "hugetlbfs";
    let mut lines = Vec::new();
    let wanting: Vec<_> =
        facts.machines.iter().filter_map(|machine| Some((machine, machine.hugetlbfs.as_ref()?))).collect();
    if wanting.is_empty() {
        let mounts: Vec<String> = facts.pages.mounts.iter().map(|path| path.display().to_string()).collect();
        lines.push(match facts.pages.huge {
            Some((all, free)) if all > 0 => Line::info(
                TOPIC,
                format!("{free} of {all} reserved 2 MiB pages are free; mounted at {}", or_nowhere(&mounts)),
            ),
            Some(_) => {
                Line::info(TOPIC, "no 2 MiB pages are reserved; needed only by a machine with `hugetlbfs`")
            }
            None => Line::info(TOPIC, "this kernel has no 2 MiB pages to reserve"),
        });
    }
    // Machines on one mount share its pages.
    let mut left = std::collections::BTreeMap::new();
    for (machine, mount) in wanting {
        let path = mount.path.display();
        let topic = format!("{TOPIC} ({})", machine.name);
        let Some((page, free)) = mount.free else {
            lines.push(
                Line::not_ready(&topic, format!("{path} is not a hugetlbfs"))
                    .change("mount one there")
                    .command(format!("mount -t hugetlbfs none {path}")),
            );
            continue;
        };
        let free = left.entry(page).or_insert(free);
        let needed = machine.memory.div_ceil(page.max(1));
        if needed > *free {
            lines.push(
                Line::not_ready(
                    &topic,
                    format!("needs {needed} pages of {} MiB, {free} are free", page >> 20),
                )
                .change("reserve more; early after boot, before memory is in pieces")
                .command(format!(
                    "f=/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages; echo $(($(cat $f) + {})) > $f",
                    page >> 10,
                    needed - *free
                )),
            );
        } else {
            *free -= needed;
            lines.push(Line::ready(&topic, format!("{needed} pages of {} MiB at {path}", page >> 20)));
        }
    }
    lines
}

fn or_nowhere(mounts: &[String]) -> String {
    if mounts.is_empty() { "no place".to_owned() } else { mounts.join(", ") }
}
