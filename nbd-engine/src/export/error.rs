//! What an export can fail with.

use std::borrow::Cow;
use std::fmt;
use std::io;

use nbd_proto::wire::ErrorCode;

/// The result of an export's method.
pub type Result<T> = core::result::Result<T, ExportError>;

/// A failure of an export: the protocol's error value and a text for people, which clients get where the protocol has
/// room for one.
///
/// An [`io::Error`] converts into it: out of space and quota become `ENOSPC`, lack of permission `EPERM`, a bad
/// argument `EINVAL`, everything else `EIO` (S-ERR-02).
#[derive(Clone, PartialEq, Eq)]
pub struct ExportError {
    code: ErrorCode,
    text: Cow<'static, str>,
}

impl ExportError {
    /// An error value of the protocol with a text. Values that the specification does not define, or forbids for the
    /// command at hand, are sent as `EIO`.
    pub fn new(code: ErrorCode, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code, text: text.into() }
    }

    /// `EIO` with a text: the medium failed.
    pub fn io(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::EIO, text)
    }

    /// `ENOSPC`: no room is left.
    #[must_use]
    pub const fn no_space() -> Self {
        Self { code: ErrorCode::ENOSPC, text: Cow::Borrowed("no space is left") }
    }

    /// `ENOTSUP`, the answer to a fast zero that would not be fast.
    #[must_use]
    pub const fn not_fast() -> Self {
        Self { code: ErrorCode::ENOTSUP, text: Cow::Borrowed("zeroing this range is not fast") }
    }

    /// The protocol's error value.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        self.code
    }

    /// The text for people.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl From<io::Error> for ExportError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        let code = match error.kind() {
            Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => ErrorCode::ENOSPC,
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => ErrorCode::EPERM,
            Kind::InvalidInput => ErrorCode::EINVAL,
            _ => ErrorCode::EIO,
        };
        Self::new(code, error.to_string())
    }
}

impl fmt::Display for ExportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.code)
    }
}

impl fmt::Debug for ExportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::error::Error for ExportError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platform_errors_become_the_protocols() {
        for (errno, code) in [
            (rustix::io::Errno::NOSPC, ErrorCode::ENOSPC),
            (rustix::io::Errno::DQUOT, ErrorCode::ENOSPC),
            (rustix::io::Errno::FBIG, ErrorCode::ENOSPC),
            (rustix::io::Errno::ROFS, ErrorCode::EPERM),
            (rustix::io::Errno::PERM, ErrorCode::EPERM),
            (rustix::io::Errno::INVAL, ErrorCode::EINVAL),
            (rustix::io::Errno::IO, ErrorCode::EIO),
            (rustix::io::Errno::NOMEM, ErrorCode::EIO),
        ] {
            assert_eq!(ExportError::from(io::Error::from(errno)).code(), code, "{errno}");
        }
    }
}
