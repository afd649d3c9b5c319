//! The default system call filter (`seccompProfile: RuntimeDefault`): what container runtimes agree on. Pure.
//!
//! Everything that is not listed fails with EPERM, as if the process lacked a privilege; `clone3` fails with ENOSYS, so that
//! C libraries fall back to `clone`, whose flags can be looked at. Names that an architecture or libseccomp does not know
//! are skipped by runc.

use std::collections::HashSet;

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator,
    LinuxSyscall,
};

const FILES: &str = "access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat \
    faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 \
    fdatasync flock fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents \
    getdents64 ioctl lchown lchown32 link linkat _llseek lseek lstat lstat64 mkdir mkdirat mknod mknodat \
    name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read \
    readahead readlink readlinkat readv rename renameat renameat2 rmdir sendfile sendfile64 splice stat stat64 statfs \
    statfs64 statx symlink symlinkat sync sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime \
    utimensat utimensat_time64 utimes vmsplice write writev cachestat";
const ATTRIBUTES: &str = "fgetxattr flistxattr fremovexattr fsetxattr getxattr lgetxattr listxattr llistxattr \
    lremovexattr lsetxattr removexattr setxattr";
const WAITING: &str = "epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
    epoll_wait_old eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch \
    io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit _newselect poll ppoll \
    ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4 timerfd_create timerfd_gettime timerfd_gettime64 \
    timerfd_settime timerfd_settime64";
const SOCKETS: &str = "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg \
    recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair";
const MEMORY: &str = "brk get_mempolicy madvise map_shadow_stack memfd_create memfd_secret mincore mlock mlock2 mlockall \
    mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect \
    process_mrelease remap_file_pages";
const PROCESSES: &str = "execve execveat exit exit_group fork getpgid getpgrp getpid getppid getpriority getsid gettid \
    kill pidfd_open pidfd_send_signal prctl prlimit64 ptrace restart_syscall setpgid setpriority setsid tgkill tkill \
    vfork wait4 waitid waitpid ioprio_get ioprio_set getrlimit setrlimit ugetrlimit getrusage times capget capset";
const SCHEDULING: &str = "getcpu sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr \
    sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity \
    sched_setattr sched_setparam sched_setscheduler sched_yield";
const THREADS: &str = "futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list \
    get_thread_area membarrier rseq set_robust_list set_thread_area set_tid_address arch_prctl modify_ldt \
    arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls";
const SIGNALS: &str = "pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend \
    rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn";
const IDENTITY: &str = "getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 \
    getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 \
    setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32";
const TIME: &str = "alarm clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep \
    clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create timer_delete timer_getoverrun \
    timer_gettime timer_gettime64 timer_settime timer_settime64";
const IPC: &str = "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
    mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat \
    shmctl shmdt shmget";
const OTHERS: &str = "getrandom landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp sysinfo syslog \
    uname";
const ALLOWED: [&str; 13] =
    [FILES, ATTRIBUTES, WAITING, SOCKETS, MEMORY, PROCESSES, SCHEDULING, THREADS, SIGNALS, IDENTITY, TIME, IPC, OTHERS];

/// What a capability opens besides.
const BY_CAPABILITY: [(Capability, &str); 11] = [
    (Capability::DacReadSearch, "open_by_handle_at"),
    (
        Capability::SysAdmin,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr mount \
         mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns umount \
         umount2 unshare",
    ),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (Capability::SysModule, "delete_module finit_module init_module query_module"),
    (Capability::SysPacct, "acct"),
    (Capability::SysPtrace, "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev"),
    (Capability::SysRawio, "iopl ioperm"),
    (Capability::SysTime, "adjtimex clock_adjtime clock_adjtime64 clock_settime clock_settime64 settimeofday stime"),
    (Capability::SysTtyConfig, "vhangup"),
    (Capability::SysNice, "mbind set_mempolicy set_mempolicy_home_node"),
];

/// Execution domains that are harmless: Linux, 32 bits, no randomisation, and the question which one it is.
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// `CLONE_NEW*` of mount, cgroup, UTS, IPC, user, PID and network.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
const AF_VSOCK: u64 = 40;

/// The filter for a container with these capabilities.
pub(crate) fn default(capabilities: &HashSet<Capability>) -> LinuxSeccomp {
    let mut rules: Vec<LinuxSyscall> = ALLOWED.iter().map(|names| allow(names, None)).collect();
    for personality in PERSONALITIES {
        rules.push(allow("personality", Some(compare(LinuxSeccompOperator::ScmpCmpEq, personality, None))));
    }
    // Virtual machines' sockets know no namespaces.
    rules.push(allow("socket", Some(compare(LinuxSeccompOperator::ScmpCmpNe, AF_VSOCK, None))));
    for (capability, names) in &BY_CAPABILITY {
        if capabilities.contains(capability) {
            rules.push(allow(names, None));
        }
    }
    if !capabilities.contains(&Capability::SysAdmin) {
        let no_namespaces = compare(LinuxSeccompOperator::ScmpCmpMaskedEq, NEW_NAMESPACES, Some(0));
        rules.push(allow("clone", Some(no_namespaces)));
        let mut clone3 = allow("clone3", None);
        clone3.set_action(LinuxSeccompAction::ScmpActErrno).set_errno_ret(Some(libc::ENOSYS.cast_unsigned()));
        rules.push(clone3);
    }
    let mut filter = LinuxSeccomp::default();
    filter
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(libc::EPERM.cast_unsigned()))
        .set_architectures(Some(architectures()))
        .set_syscalls(Some(rules));
    filter
}

fn architectures() -> Vec<Arch> {
    match std::env::consts::ARCH {
        "aarch64" => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        _ => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
    }
}

fn allow(names: &str, condition: Option<LinuxSeccompArg>) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.split_whitespace().map(str::to_owned).collect())
        .set_action(LinuxSeccompAction::ScmpActAllow)
        .set_args(condition.map(|condition| vec![condition]));
    rule
}

/// A condition on the first argument.
fn compare(how: LinuxSeccompOperator, value: u64, second: Option<u64>) -> LinuxSeccompArg {
    let condition = LinuxSeccompArgBuilder::default().index(0_usize).value(value).op(how);
    let condition = match second {
        Some(second) => condition.value_two(second),
        None => condition,
    };
    condition.build().expect("every field has a default")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_open_what_is_closed() {
        let allowed = |capabilities: &[Capability], name: &str| {
            let filter = default(&capabilities.iter().copied().collect());
            let rules = filter.syscalls().clone().unwrap_or_default();
            let free =
                |rule: &&LinuxSyscall| rule.action() == LinuxSeccompAction::ScmpActAllow && rule.args().is_none();
            rules.iter().filter(free).any(|rule| rule.names().iter().any(|allowed| allowed == name))
        };
        for (name, capability) in [
            ("mount", Capability::SysAdmin),
            ("unshare", Capability::SysAdmin),
            ("clone3", Capability::SysAdmin),
            ("chroot", Capability::SysChroot),
            ("settimeofday", Capability::SysTime),
        ] {
            assert!(!allowed(&[], name), "{name}");
            assert!(allowed(&[capability], name), "{name} with {capability}");
        }
        assert!(allowed(&[], "openat") && !allowed(&[], "kexec_load") && !allowed(&[Capability::SysAdmin], "keyctl"));
    }
}
