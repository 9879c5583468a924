//! Which versions of TLS the peers speak that use GnuTLS: libnbd, nbdkit, qemu and nbd-server.

use std::process::Command;

use tempfile::NamedTempFile;

/// Versions of TLS that a peer is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    /// 1.3 alone.
    New,
    /// 1.2 at most.
    Old,
    /// 1.1 at most, which no peer should accept.
    Obsolete,
}

/// Every version that has to work.
pub const VERSIONS: [Versions; 2] = [Versions::New, Versions::Old];

/// Holds peers to versions, as long as it lives.
#[derive(Debug)]
pub struct Held(NamedTempFile);

impl Versions {
    /// Writes what GnuTLS takes for the system's policy.
    pub fn hold(self) -> Held {
        let disabled: &[&str] = match self {
            Self::New => &["tls1.0", "tls1.1", "tls1.2"],
            Self::Old => &["tls1.3"],
            Self::Obsolete => &["tls1.3", "tls1.2"],
        };
        let mut text = "[overrides]\n".to_owned();
        for version in disabled {
            text.push_str(&format!("disabled-version = {version}\n"));
        }
        let file = NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("it is ours");
        Held(file)
    }

    /// How our log calls the version that is agreed on with a peer that is held to these.
    pub fn logged(self) -> &'static str {
        match self {
            Self::New => "TLSv1.3",
            Self::Old => "TLSv1.2",
            Self::Obsolete => "TLSv1.1",
        }
    }
}

impl Held {
    /// Holds the peer that this command starts.
    pub fn apply<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("GNUTLS_SYSTEM_PRIORITY_FILE", self.0.path())
    }
}
