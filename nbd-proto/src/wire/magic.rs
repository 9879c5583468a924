//! Magic numbers of the protocol.

/// `NBDMAGIC`, the first eight bytes that any server sends (section "Handshake").
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, the second magic of a newstyle greeting and the head of each option (section "Newstyle negotiation").
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// `cliserv_magic`, the second magic of an oldstyle greeting (section "Oldstyle negotiation").
pub const OLDSTYLE: u64 = 0x0000_4202_8186_1253;
/// The head of each option reply (section "Fixed newstyle negotiation").
pub const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// `NBD_REQUEST_MAGIC`, the head of a compact request (section "Request message").
pub const REQUEST: u32 = 0x2560_9513;
/// `NBD_EXTENDED_REQUEST_MAGIC`, the head of an extended request (section "Request message").
pub const EXTENDED_REQUEST: u32 = 0x21e4_1c71;
/// `NBD_SIMPLE_REPLY_MAGIC` (section "Simple reply message").
pub const SIMPLE_REPLY: u32 = 0x6744_6698;
/// `NBD_STRUCTURED_REPLY_MAGIC` (section "Structured reply chunk message").
pub const STRUCTURED_REPLY: u32 = 0x668e_33ef;
/// `NBD_EXTENDED_REPLY_MAGIC` (section "Extended reply chunk message").
pub const EXTENDED_REPLY: u32 = 0x6e8a_278c;
