//! The second step: seccomp, which says what can be asked of the system.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads,
};

/// What serving takes, whatever the arguments. Calls that open, make or remove files are here, too: landlock says which.
const ALLOWED: &[c_long] = &[
    // Data.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_copy_file_range,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    // Files.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_statfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_mkdirat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_umask,
    // Sockets that are there, and those that clients bring.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_restart_syscall,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_mincore,
    libc::SYS_membarrier,
    // Threads and this process. To clone3 another filter says that there is no such call.
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrusage,
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    // Older calls, which newer architectures don't have.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pipe,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    #[cfg(not(target_arch = "riscv64"))]
    libc::SYS_renameat,
];

/// `TIOCSTI`, which types into a terminal, and `TIOCLINUX`, which pastes. C libraries differ in their type.
const TYPING: [u64; 2] = [0x5412, 0x541c];

/// `PR_SET_VMA`, by which allocators name their memory.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// Restricts all threads of this process to what serving takes; they get EPERM for anything else.
pub(super) fn seal() -> Result<(), String> {
    let programs = filters().map_err(|error| format!("seccomp: {error}"))?;
    for program in programs {
        apply_filter_all_threads(&program).map_err(|error| {
            format!("seccomp: {error} (the kernel needs CONFIG_SECCOMP_FILTER)")
        })?;
    }
    Ok(())
}

/// The filters, of which the strictest answer counts.
fn filters() -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    let architecture = std::env::consts::ARCH.try_into()?;
    let errno = |number: libc::c_int| SeccompAction::Errno(number.unsigned_abs());
    let allowed =
        SeccompFilter::new(rules()?, errno(libc::EPERM), SeccompAction::Allow, architecture)?;
    // A filter can't see the flags of clone3, which lie in memory; without it, the C library takes clone.
    let hidden = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let hidden =
        SeccompFilter::new(hidden, SeccompAction::Allow, errno(libc::ENOSYS), architecture)?;
    Ok([hidden.try_into()?, allowed.try_into()?])
}

fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    let one =
        |condition| Ok::<_, seccompiler::BackendError>(vec![SeccompRule::new(vec![condition?])?]);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    // Threads, and no processes.
    let thread = libc::CLONE_THREAD.unsigned_abs().into();
    rules.insert(libc::SYS_clone, one(SeccompCondition::new(0, Qword, MaskedEq(thread), thread))?);
    // Unix sockets: pairs of them, and messages to the service manager. To connect one is another call.
    let unix = libc::AF_UNIX.unsigned_abs().into();
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        rules.insert(call, one(SeccompCondition::new(0, Dword, Eq, unix))?);
    }
    // Signals to this process, such as that of `abort`.
    let own = u64::from(std::process::id());
    for call in [libc::SYS_kill, libc::SYS_tgkill] {
        rules.insert(call, one(SeccompCondition::new(0, Dword, Eq, own))?);
    }
    let not_typing = TYPING.map(|request| SeccompCondition::new(1, Dword, Ne, request));
    let not_typing = not_typing.into_iter().collect::<Result<Vec<_>, _>>()?;
    rules.insert(libc::SYS_ioctl, vec![SeccompRule::new(not_typing)?]);
    let names =
        [libc::PR_SET_NAME, libc::PR_GET_NAME].map(|option| u64::from(option.unsigned_abs()));
    let names = names.into_iter().chain([PR_SET_VMA]);
    let names =
        names.map(|option| SeccompRule::new(vec![SeccompCondition::new(0, Dword, Eq, option)?]));
    rules.insert(libc::SYS_prctl, names.collect::<Result<Vec<_>, _>>()?);
    // Limits are read, and not set.
    rules.insert(libc::SYS_prlimit64, one(SeccompCondition::new(2, Qword, Eq, 0))?);
    Ok(rules)
}

/// The calls that are answered by something else than EPERM, some of them according to their arguments.
#[cfg(test)]
pub(super) fn answered() -> std::collections::BTreeSet<i64> {
    rules().expect("they are well-formed").into_keys().collect()
}
