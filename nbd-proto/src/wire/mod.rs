//! The wire codec: plain values, their bytes, and nothing else.
//!
//! A module per family of messages. Nothing here knows of a connection's state: the [`server`](crate::server) and
//! [`client`](crate::client) machines import the codec, never the other way round. Fixed-size messages convert from
//! and to arrays, variable ones are decoded by a [`Reader`] that insists on the end of its input. All integers are
//! big-endian (section "Conventions" of the specification). Numbers that the specification may extend (options, reply
//! types, commands, errors) are open: an unknown value survives decoding, printing and encoding.

mod bytes;
mod flags;
mod greeting;
pub mod magic;
mod meta;
mod option;
mod reply;
mod request;

pub(crate) use bytes::{ArrayWriter, valid_string};
pub use bytes::{DecodeError, Reader, is_valid_string};
pub use flags::{
    AllocationFlags, ClientFlags, CommandFlags, HandshakeFlags, ReplyFlags, TransmissionFlags,
};
pub use greeting::{Greeting, NewstyleGreeting, OldstyleGreeting};
pub(crate) use meta::Queries;
pub use meta::{MetaContextReply, MetaContextRequest};
pub use option::{
    BlockSizeInfo, ExportInfoReply, ExportNameReply, InfoReply, InfoRequest, InfoType, OptionCode,
    OptionHeader, OptionReplyHeader, OptionReplyType, ServerReply,
};
pub use reply::{
    BlockStatusDescriptor, ErrorChunk, ErrorCode, ExtendedReplyHeader, ReplyType,
    SimpleReplyHeader, StructuredReplyHeader,
};
pub use request::{CommandType, CompactRequest, ExtendedRequest};

/// The longest string that the protocol allows, in bytes (section "Conventions").
pub const MAX_STRING: usize = 4096;

/// The TCP port registered for NBD (section "Newstyle negotiation").
pub const DEFAULT_PORT: u16 = 10809;

/// Zero bytes that end the answer to `NBD_OPT_EXPORT_NAME` unless `NO_ZEROES` was agreed, and the oldstyle greeting.
pub const EXPORT_NAME_PADDING: usize = 124;

/// Defines an open set of numbers: a newtype with named constants that prints the specification's names.
macro_rules! open_numbers {
    ($(#[$meta:meta])* $name:ident($repr:ty) { $($(#[$vmeta:meta])* $variant:ident = $value:expr, $text:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub $repr);

        impl $name {
            $($(#[$vmeta])* pub const $variant: Self = Self($value);)*

            /// The specification's name of this number, if it has one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some($text),)*
                    _ => None,
                }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, concat!(stringify!($name), " {:#x}"), self.0),
                }
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(self, f)
            }
        }
    };
}
use open_numbers;
