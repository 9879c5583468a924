//! Every bound on what a peer can make a connection hold.

/// Options that a client may send about each export that was listed to it, beyond [`Limits::max_options`]. Clients that
/// look at all exports send one to four for each.
pub const OPTIONS_PER_EXPORT: u32 = 8;

/// Bounds of one connection, with the reason for each default.
///
/// No length from the wire sizes an allocation before it was compared with one of these. The worst case for a server
/// connection's own memory is about
///
/// ```text
/// max_option_data + 256 KiB                              an option, and option replies that wait to be sent
///   + max_in_flight * (128 + 32 + 4128)                  slots, reply headers, error texts
///   + the part of max_in_flight_bytes that block status replies take
/// ```
///
/// and the embedder holds, in request and reply data, what is left of `max_in_flight_bytes`, or one payload if that is
/// more. (Vectors that grow take up to twice as much for a while.) For a client
/// connection's own memory it is about
///
/// ```text
/// max_option_reply + max_contexts * 4096                 replies and selection while haggling
///   + max_in_flight * (256 + 32 + 3 * 4096)              slots, request headers, error texts
///   + max_in_flight * max_fragments * (16 + 8)           read replies in pieces
///   + max_in_flight * max_contexts * 4                   block status requests
///   + 8192 + 8192                                        an error chunk, a batch of extents
/// ```
///
/// and the data that it reads and writes lies in buffers that its embedder sized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Requests in flight. A server counts those that are received and whose reply is not yet wholly transmitted, and
    /// stops reading at this number; a client those that are submitted and not completed, and refuses more. Default
    /// 128: twice what the keenest common client (nbdcopy, 64) keeps in flight.
    pub max_in_flight: u32,
    /// Bytes of data (read or written) and of extents that the requests in flight may need; a block status counts as if
    /// it were answered with as many extents as are allowed. A server stops reading at this number; a single request
    /// may exceed it when it is alone. Clients don't use it. Default 64 MiB: two of the largest payloads.
    pub max_in_flight_bytes: u64,
    /// The longest payload of a read or write, in bytes; lowers what exports advertise, on a server to its clients, on
    /// a client to its embedder. Default 32 MiB, which the specification asks servers to support.
    // S-SZ-06
    pub max_payload: u32,
    /// The longest option data that is looked at, in bytes. Default 64 KiB: a name of 4096 bytes and a thousand
    /// metadata queries of ordinary length. Longer data of a known option is skipped and answered `TOO_BIG`.
    pub max_option_data: u32,
    /// The longest option data that is skipped, in bytes; more is a hard disconnect. Default 16 MiB.
    // S-OPT-05
    pub max_option_skip: u32,
    /// Options on one connection, besides [`OPTIONS_PER_EXPORT`] for each export that was listed to the client; more is a
    /// hard disconnect (section "Termination of the session during option haggling", denial of service). Default 4096.
    pub max_options: u32,
    /// Metadata contexts selected at once; a server answers `TOO_BIG` to more, a client that asked for fewer
    /// disconnects. Default 16.
    pub max_contexts: u32,
    /// Extents in one block status chunk; the client asks again for the rest. Default 4096, at most 2^20.
    // S-CMD-BS-07
    pub max_extents: u32,
    /// The longest data of one option reply that a client takes, in bytes; more is a hard disconnect.
    /// Default 64 KiB: the longest that are defined, an export's name and description, have 8196.
    // C-OPT-17
    pub max_option_reply: u32,
    /// Replies to one option that a client takes; more is a hard disconnect. Default 2^17: a server has at most that many
    /// exports if their names come from a command line. Embedders that collect replies have to bound the bytes that they
    /// keep.
    pub max_option_replies: u32,
    /// Separate runs of bytes that a client keeps account of in one read's reply, and error chunks in one reply; more is
    /// a hard disconnect. Default 4096. Servers that answer in order need one.
    pub max_fragments: u32,
    /// Extents in one block status chunk that a client takes; more is a hard disconnect. They are handed on in batches,
    /// so that memory does not depend on it. Default 2^20, which servers should not exceed.
    // S-CMD-BS-07
    pub max_reply_extents: u32,
}

impl Limits {
    /// The defaults.
    pub const DEFAULT: Self = Self {
        max_in_flight: 128,
        max_in_flight_bytes: 64 << 20,
        max_payload: 1 << 25,
        max_option_data: 64 << 10,
        max_option_skip: 16 << 20,
        max_options: 4096,
        max_contexts: 16,
        max_extents: 4096,
        max_option_reply: 64 << 10,
        max_option_replies: 1 << 17,
        max_fragments: 4096,
        max_reply_extents: 1 << 20,
    };

    /// The longest payload of a refused request that is read and dropped to keep the stream in sync; more is a hard
    /// disconnect. 32 MiB at least, since that much must not count as an attack.
    // S-SZ-09
    #[must_use]
    pub fn max_discard(&self) -> u64 {
        u64::from(self.max_payload.max(1 << 25))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
