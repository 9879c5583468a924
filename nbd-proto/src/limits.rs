//! Every bound on what a peer can make a connection hold.

/// Options that a client may send about each export that was listed to it, beyond [`Limits::max_options`]. Clients that
/// look at all exports send one to four for each.
pub const OPTIONS_PER_EXPORT: u32 = 8;

/// Bounds of one connection: what a peer can make it hold, and how long it can keep it busy.
///
/// No length from the wire sizes an allocation before it was compared with one of these.
///
/// Each bound says its default, the reason for it, and what the peer sees beyond it. Any number is allowed; where the
/// bound has a range of its own the nearest number in it counts, and elsewhere 0 allows nothing.
///
/// The worst case for a server connection's own memory is about
///
/// ```text
/// max_option_data + 256 KiB                              an option, and option replies that wait to be sent
///   + max_in_flight * (192 + 32 + 4128)                  slots, reply headers, error texts
///   + the part of max_in_flight_bytes that block status replies take
///   + max_extents * 16                                   extents on their way to a reply
/// ```
///
/// and the embedder holds, in request and reply data, what is left of `max_in_flight_bytes`, or one payload if that is
/// more. (Vectors that grow take up to twice as much for a while.) For a client connection's own memory it is about
///
/// ```text
/// max_option_reply + max_contexts * 4096                 replies and selection during the negotiation
///   + max_in_flight * (256 + 32 + 3 * 4096)              slots, request headers, error texts
///   + max_in_flight * max_fragments * (16 + 8)           read replies in pieces
///   + max_in_flight * max_contexts * 4                   block status requests
///   + 8192 + 8192                                        an error chunk, a batch of extents
/// ```
///
/// and the data that it reads and writes lies in buffers that its embedder sized. A [`RecvBuffer`](crate::RecvBuffer)
/// adds 64 KiB at most to either.
///
/// ```
/// use nbd_proto::server::{Config, Connection};
///
/// let mut config = Config::default();
/// config.limits.max_in_flight = 16;
/// config.limits.max_payload = 1 << 20;
/// let connection = Connection::new(config);
/// # drop(connection);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Requests in flight: on a server those that are received and whose reply is not yet wholly transmitted, on a
    /// client those that are submitted and not completed.
    ///
    /// - Range: from 1.
    /// - Default: 128, twice what the keenest common client (nbdcopy, 64) keeps in flight.
    /// - Beyond it: nothing is read until replies have been sent; a client refuses to submit.
    pub max_in_flight: u32,
    /// On a server: bytes of data (read or written) and of extents that the requests in flight may need; a block status
    /// counts as if it were answered with as many extents as are allowed. A single request may exceed it when it is
    /// alone.
    ///
    /// - Default: 64 MiB, two of the largest payloads.
    /// - Beyond it: nothing is read until replies have been sent.
    pub max_in_flight_bytes: u64,
    /// The longest payload of a read or write, in bytes; lowers what exports advertise, on a server to its clients, on
    /// a client to its embedder.
    ///
    /// - Range: from the preferred block size of the export in question, on a server to 2^31.
    /// - Default: 32 MiB, which the specification asks servers to support.
    /// - Beyond it: a read fails with `EOVERFLOW`, a write with `EINVAL`; beyond [`max_discard`](Self::max_discard) a
    ///   write is a hard disconnect.
    // S-SZ-06
    pub max_payload: u32,
    /// On a server: the longest option data that is looked at, in bytes. Longer data is skipped.
    ///
    /// - Default: 64 KiB, a name of 4096 bytes and a thousand metadata queries of ordinary length.
    /// - Beyond it: `NBD_REP_ERR_TOO_BIG`.
    pub max_option_data: u32,
    /// On a server: the longest option data that is skipped, in bytes.
    ///
    /// - Range: from [`max_option_data`](Self::max_option_data).
    /// - Default: 16 MiB; nothing that is defined comes near it.
    /// - Beyond it: a hard disconnect.
    // S-OPT-05
    pub max_option_skip: u32,
    /// On a server: options on one connection; [`OPTIONS_PER_EXPORT`] more for each export of the longest list that was
    /// sent. More count as a denial of service, to which the specification allows a hard disconnect.
    ///
    /// - Default: 4096; a client may ask about each export that was listed, and about its metadata contexts.
    /// - Beyond it: a hard disconnect.
    // S-OPT-13
    pub max_options: u32,
    /// Metadata contexts selected at once.
    ///
    /// - Default: 16; a handful is common.
    /// - Beyond it: a server answers `NBD_REP_ERR_TOO_BIG`; a client that is given more than it asked for disconnects.
    pub max_contexts: u32,
    /// On a server: extents in one block status chunk, which is also no longer than the maximum payload.
    ///
    /// - Range: from 1 to 2^20.
    /// - Default: 4096.
    /// - Beyond it: a shorter reply, and the client asks again for the rest.
    // S-CMD-BS-07
    pub max_extents: u32,
    /// On a client: the longest data of one option reply, in bytes.
    ///
    /// - Default: 64 KiB; the longest that are defined, an export's name and description, have 8196 bytes.
    /// - Beyond it: a hard disconnect.
    // C-OPT-17
    pub max_option_reply: u32,
    /// On a client: replies to one option. Embedders that collect replies have to bound the bytes that they keep.
    ///
    /// - Default: 2^17; a server has at most that many exports if their names come from a command line.
    /// - Beyond it: a hard disconnect.
    pub max_option_replies: u32,
    /// On a client: separate runs of bytes that are kept account of in one read's reply, and error chunks in one reply.
    ///
    /// - Default: 4096; servers that answer in order need one.
    /// - Beyond it: a hard disconnect.
    pub max_fragments: u32,
    /// On a client: extents in one block status chunk. They are handed on in batches, so that memory does not depend on
    /// it.
    ///
    /// - Default: 2^20, which servers should not exceed.
    /// - Beyond it: a hard disconnect.
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
