use std::collections::BTreeSet;

use super::*;

const ROLES: [Role; 3] = [Role::Vmm, Role::Blk, Role::Net];

/// Calls no list may ever have, whatever a program would like.
const NEVER: &[i64] = &[
    libc::SYS_open,
    libc::SYS_openat2,
    libc::SYS_open_by_handle_at,
    libc::SYS_creat,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_setuid,
    libc::SYS_setresuid,
    libc::SYS_capset,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_register,
    libc::SYS_init_module,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_chmod,
    libc::SYS_modify_ldt,
    libc::SYS_pkey_mprotect,
    libc::SYS_shmget,
    libc::SYS_seccomp,
];

#[test]
fn every_list_compiles() {
    for role in ROLES {
        for action in [SeccompAction::KillProcess, SeccompAction::Log, SeccompAction::Trap] {
            compile(&calls(role, Pid::from_raw(1)), action).unwrap();
        }
    }
    let mut reaper = reaper::calls(Pid::from_raw(2), Pid::from_raw(3), Some(5));
    reaper.extend(reaper::REMOVER.iter().cloned());
    compile(&reaper, SeccompAction::KillProcess).unwrap();
}

#[test]
fn no_list_has_what_none_may_have() {
    for role in ROLES {
        for call in calls(role, Pid::from_raw(1)) {
            assert!(!NEVER.contains(&call.number), "{role:?} allows call {}", call.number);
        }
    }
}

#[test]
fn every_call_has_a_reason_and_stands_once() {
    for role in ROLES {
        let mut seen = BTreeSet::new();
        for call in calls(role, Pid::from_raw(1)) {
            assert!(!call.why.is_empty(), "{role:?}: call {} has no reason", call.number);
            let unconditional = matches!(call.when, When::Always);
            let once = seen.insert(call.number) || !unconditional;
            assert!(once, "{role:?}: call {} is listed twice, and once for all arguments", call.number);
        }
    }
}

#[test]
fn only_the_vmm_makes_sockets_and_only_unix_ones() {
    for role in ROLES {
        let sockets: Vec<Call> = calls(role, Pid::from_raw(1))
            .into_iter()
            .filter(|call| call.number == libc::SYS_socket)
            .collect();
        match role {
            Role::Vmm => {
                let [Call { when: When::Any(checks), .. }] = sockets.as_slice() else {
                    panic!("{sockets:?}")
                };
                assert_eq!(checks.as_ref(), [rule::is(0, libc::AF_UNIX as u32)]);
            }
            Role::Blk | Role::Net => assert!(sockets.is_empty()),
        }
    }
}
