//! What an export can fail with.

use std::borrow::Cow;
use std::fmt;
use std::io;

use nbd_proto::wire::ErrorCode;

/// The result of an export's method; of anything else when it is given another error.
pub type Result<T, E = ExportError> = core::result::Result<T, E>;

/// A failure of an export: the protocol's error value and a text for people, which clients get where the protocol has
/// room for one.
///
/// An [`io::Error`] converts into it: out of space, out of quota and too large a file become `ENOSPC`, lack of
/// permission and a read-only file system `EPERM`, a bad argument `EINVAL`, everything else `EIO`. Servers log such an
/// error as one of the disk, whatever its value.
///
/// ```
/// use nbd_engine::export::{ErrorCode, ExportError};
///
/// let busy = ExportError::new(ErrorCode::EPERM, "another client writes here");
/// assert_eq!(busy, ExportError::permission("another client writes here"));
/// ```
#[derive(Clone)]
pub struct ExportError {
    code: ErrorCode,
    text: Cow<'static, str>,
    /// Whether it is the system's, and not what the export thinks of the request.
    of_system: bool,
}

impl PartialEq for ExportError {
    fn eq(&self, other: &Self) -> bool {
        self.code == other.code && self.text == other.text
    }
}

impl Eq for ExportError {}

impl ExportError {
    /// An error value of the protocol with a text.
    ///
    /// `EPERM`, `EIO`, `ENOMEM`, `EINVAL` and `ESHUTDOWN` reach the client as they are, and so do `ENOSPC` of a command
    /// that writes, `ENOTSUP` of a fast zero, and `EOVERFLOW` of anything but a write or a fast zero. Where the
    /// specification has no use for them (section "Error values") `ENOTSUP` and `EOVERFLOW` are sent as `EINVAL`, and
    /// all else, values that it does not define included, as `EIO`.
    ///
    /// `ESHUTDOWN` also ends the connection that the request came by, in order: requests that are under way are
    /// answered, later ones fail with `ESHUTDOWN`, then the connection is closed.
    pub fn new(code: ErrorCode, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code, text: text.into(), of_system: false }
    }

    /// One without a text of its own.
    const fn known(code: ErrorCode, text: &'static str) -> Self {
        Self { code, text: Cow::Borrowed(text), of_system: false }
    }

    /// `EPERM` with a text: the client may not do that.
    pub fn permission(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::EPERM, text)
    }

    /// `EINVAL` with a text: the request makes no sense to the export.
    pub fn invalid(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::EINVAL, text)
    }

    /// `ESHUTDOWN` with a text: the export goes away. Ends the connection, see [`new`](Self::new).
    pub fn shutting_down(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::ESHUTDOWN, text)
    }

    /// `EIO` with a text: the medium failed.
    pub fn io(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::EIO, text)
    }

    /// `ENOSPC`: no space is left.
    #[must_use]
    pub const fn no_space() -> Self {
        Self::known(ErrorCode::ENOSPC, "no space is left")
    }

    /// `ENOMEM`: the server is out of memory.
    #[must_use]
    pub const fn no_memory() -> Self {
        Self::known(ErrorCode::ENOMEM, "out of memory")
    }

    /// `EOVERFLOW`: the request is too large; the client should ask for less at a time.
    #[must_use]
    pub const fn too_large() -> Self {
        Self::known(ErrorCode::EOVERFLOW, "the request is too large")
    }

    /// `ENOTSUP`, the answer to a fast zero that would not be fast.
    #[must_use]
    pub const fn not_fast() -> Self {
        Self::known(ErrorCode::ENOTSUP, "zeroing this range is not fast")
    }

    /// The protocol's error value.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        self.code
    }

    /// The same with another text.
    pub(crate) fn with_text(self, text: String) -> Self {
        Self { text: text.into(), ..self }
    }

    /// Whether it comes from an [`io::Error`]: from what the export is made of.
    pub(crate) const fn is_of_system(&self) -> bool {
        self.of_system
    }

    /// The text for people.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

// (S-ERR-02)
impl From<io::Error> for ExportError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        let code = match error.kind() {
            Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => ErrorCode::ENOSPC,
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => ErrorCode::EPERM,
            Kind::InvalidInput => ErrorCode::EINVAL,
            _ => ErrorCode::EIO,
        };
        Self { of_system: true, ..Self::new(code, error.to_string()) }
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
            let error = ExportError::from(io::Error::from(errno));
            assert!(error.code() == code && error.is_of_system(), "{errno}");
            let own = ExportError::new(code, error.text().to_owned());
            assert!(own == error && !own.is_of_system());
        }
    }
}
