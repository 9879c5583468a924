//! The first step: landlock, which says which files can be opened.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope,
};

use super::Needs;

/// The newest kernel's rights that are known here. Older kernels enforce those that they know; what they don't, the filter
/// of calls does: connections, and truncation by a path.
const KNOWN: ABI = ABI::V6;

/// What is read to learn how much memory the process may use, which changes while it runs.
const MEMORY: &[&str] = &[
    "/proc/meminfo",
    "/proc/self/cgroup",
    "/proc/self/mountinfo",
    "/proc/self/status",
    "/sys/fs/cgroup",
];

/// Its file `unix` says which Unix sockets are alive: a server that was killed has left its own behind, which the next one
/// replaces. The kernel makes the files in there anew for each look, so that no rule could be about one of them.
const NETWORK: &str = "/proc/self/net";

/// Whether a terminal controls the process is asked when it hangs up.
const TERMINAL: &str = "/dev/tty";

/// What the rules are about. In `/proc` an entry that nobody holds may be another one the next time, about which there is no
/// rule.
#[derive(Debug)]
pub(super) struct Confined(#[expect(dead_code, reason = "they are held, not used")] Vec<OwnedFd>);

/// There may be no other thread: it would not be confined.
pub(super) fn is_single_threaded() -> Result<(), String> {
    match fs::read_dir("/proc/self/task").map(Iterator::count) {
        Ok(1) => Ok(()),
        Ok(count) => Err(format!("{count} threads run already, a fault of nbd itself")),
        Err(error) => Err(format!("cannot count the threads in /proc/self/task: {error}")),
    }
}

/// Confines this thread, and those that it starts.
pub(super) fn confine(needs: &Needs) -> Result<Confined, String> {
    let mut held = Vec::new();
    let status = restrict(needs, &mut held)?;
    match status.ruleset {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(Confined(held)),
        RulesetStatus::NotEnforced => Err(
            "the kernel has no landlock, or a container's filter of system calls forbids it: it needs Linux 5.13 with \
             CONFIG_SECURITY_LANDLOCK, and landlock among the names in /sys/kernel/security/lsm (boot parameter lsm=)"
                .into(),
        ),
    }
}

fn restrict(needs: &Needs, held: &mut Vec<OwnedFd>) -> Result<RestrictionStatus, String> {
    let failed = |error: RulesetError| format!("landlock: {error}");
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    let ruleset = ruleset.handle_access(AccessFs::from_all(KNOWN)).map_err(failed)?;
    let ruleset = ruleset.handle_access(AccessNet::ConnectTcp).map_err(failed)?;
    let ruleset = ruleset.scope(Scope::Signal).map_err(failed)?;
    // A service manager may listen for messages on a socket without a path.
    let notified = std::env::var_os("NOTIFY_SOCKET")
        .is_some_and(|path| path.as_encoded_bytes().starts_with(b"@"));
    let ruleset = match notified {
        true => ruleset,
        false => ruleset.scope(Scope::AbstractUnixSocket).map_err(failed)?,
    };
    let mut rules = Rules { ruleset: ruleset.create().map_err(failed)?, held };
    for path in MEMORY.iter().chain(&[TERMINAL]) {
        rules.allow_if_there(Path::new(path), AccessFs::ReadFile | AccessFs::ReadDir)?;
    }
    for path in &needs.read {
        rules.allow(path, AccessFs::ReadFile | AccessFs::ReadDir)?;
    }
    if !needs.sockets.is_empty() {
        rules.allow_if_there(Path::new(NETWORK), AccessFs::ReadFile.into())?;
    }
    for path in &needs.sockets {
        rules.allow(path, AccessFs::ReadDir | AccessFs::MakeSock | AccessFs::RemoveFile)?;
    }
    for path in &needs.write {
        rules.allow(
            path,
            AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::WriteFile | AccessFs::Truncate,
        )?;
    }
    for (path, writes) in &needs.reopened {
        let access = match writes {
            true => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate,
            false => AccessFs::ReadFile.into(),
        };
        // Some can't have a rule, such as files without a name. They are open.
        if let Err(error) = rules.allow(path, access) {
            tracing::debug!(error, "a reload cannot open a file anew");
        }
    }
    rules.ruleset.restrict_self().map_err(failed)
}

struct Rules<'a> {
    ruleset: RulesetCreated,
    held: &'a mut Vec<OwnedFd>,
}

impl Rules<'_> {
    fn allow(&mut self, path: &Path, access: impl Into<BitFlags<AccessFs>>) -> Result<(), String> {
        let cannot = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let opened = PathFd::new(path).map_err(|error| cannot(&error))?;
        let held = opened.as_fd().try_clone_to_owned().map_err(|error| cannot(&error))?;
        // What only folders have means nothing for a file. The size of a device is asked by a call of its own.
        let access = match fs::metadata(path).map(|found| found.file_type()) {
            Ok(kind) if kind.is_dir() => access.into(),
            Ok(kind) if kind.is_block_device() => {
                access.into() & AccessFs::from_file(KNOWN) | AccessFs::IoctlDev
            }
            _ => access.into() & AccessFs::from_file(KNOWN),
        };
        let rule = PathBeneath::new(opened, access);
        (&mut self.ruleset).add_rule(rule).map_err(|error| cannot(&error))?;
        self.held.push(held);
        Ok(())
    }

    fn allow_if_there(&mut self, path: &Path, access: BitFlags<AccessFs>) -> Result<(), String> {
        // A process without a terminal can't open its terminal, though the file is there.
        match fs::metadata(path).is_ok()
            && (path != Path::new(TERMINAL) || fs::File::open(path).is_ok())
        {
            true => self.allow(path, access),
            false => Ok(()),
        }
    }
}
