//! What counters are kept by: the command of a request, and the error of its reply.

use nbd_proto::Command;
use nbd_proto::wire::{CommandType, ErrorCode};

/// A table of the kinds, from which the enum, the list of all and their names follow.
macro_rules! kinds {
    ($(#[$of:meta])* $kind:ident { $($(#[$doc:meta])* $variant:ident = $name:literal;)* }) => {
        $(#[$of])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum $kind {
            $($(#[$doc])* $variant,)*
        }

        impl $kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            pub(crate) const COUNT: usize = Self::ALL.len();

            /// The name in metrics: lower case, the words of a command joined by `_`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            #[inline]
            pub(crate) const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

pub(crate) use kinds;

kinds! {
    /// The command of a request, as metrics distinguish them.
    RequestKind {
        /// `NBD_CMD_READ`.
        Read = "read";
        /// `NBD_CMD_WRITE`.
        Write = "write";
        /// `NBD_CMD_FLUSH`.
        Flush = "flush";
        /// `NBD_CMD_TRIM`.
        Trim = "trim";
        /// `NBD_CMD_CACHE`.
        Cache = "cache";
        /// `NBD_CMD_WRITE_ZEROES`.
        WriteZeroes = "write_zeroes";
        /// `NBD_CMD_BLOCK_STATUS`.
        BlockStatus = "block_status";
        /// `NBD_CMD_RESIZE`.
        Resize = "resize";
        /// A command that is unknown here. A server refuses all of them.
        Unknown = "unknown";
    }
}

impl RequestKind {
    #[inline]
    pub(crate) const fn of(command: &Command) -> Self {
        match command {
            Command::Read { .. } => Self::Read,
            Command::Write { .. } => Self::Write,
            Command::Flush => Self::Flush,
            Command::Trim { .. } => Self::Trim,
            Command::Cache { .. } => Self::Cache,
            Command::WriteZeroes { .. } => Self::WriteZeroes,
            Command::BlockStatus { .. } => Self::BlockStatus,
            Command::Resize { .. } => Self::Resize,
            _ => Self::Unknown,
        }
    }

    pub(crate) const fn of_type(command: Option<CommandType>) -> Self {
        match command {
            Some(CommandType::READ) => Self::Read,
            Some(CommandType::WRITE) => Self::Write,
            Some(CommandType::FLUSH) => Self::Flush,
            Some(CommandType::TRIM) => Self::Trim,
            Some(CommandType::CACHE) => Self::Cache,
            Some(CommandType::WRITE_ZEROES) => Self::WriteZeroes,
            Some(CommandType::BLOCK_STATUS) => Self::BlockStatus,
            Some(CommandType::RESIZE) => Self::Resize,
            _ => Self::Unknown,
        }
    }
}

kinds! {
    /// The error of a reply, as metrics distinguish them.
    ErrorKind {
        /// `NBD_EPERM`: the export is read-only.
        Eperm = "eperm";
        /// `NBD_EIO`: input or output error.
        Eio = "eio";
        /// `NBD_ENOMEM`: out of memory.
        Enomem = "enomem";
        /// `NBD_EINVAL`: invalid argument.
        Einval = "einval";
        /// `NBD_ENOSPC`: no space left.
        Enospc = "enospc";
        /// `NBD_EOVERFLOW`: too large.
        Eoverflow = "eoverflow";
        /// `NBD_ENOTSUP`: not supported, such as a fast zero that is not fast.
        Enotsup = "enotsup";
        /// `NBD_ESHUTDOWN`: the server or the export shuts down.
        Eshutdown = "eshutdown";
        /// Any other error value. A server of this crate sends none.
        Other = "other";
    }
}

impl ErrorKind {
    pub(crate) const fn of(code: ErrorCode) -> Self {
        match code {
            ErrorCode::EPERM => Self::Eperm,
            ErrorCode::EIO => Self::Eio,
            ErrorCode::ENOMEM => Self::Enomem,
            ErrorCode::EINVAL => Self::Einval,
            ErrorCode::ENOSPC => Self::Enospc,
            ErrorCode::EOVERFLOW => Self::Eoverflow,
            ErrorCode::ENOTSUP => Self::Enotsup,
            ErrorCode::ESHUTDOWN => Self::Eshutdown,
            _ => Self::Other,
        }
    }
}
