//! Replies put together from their chunks, with the rules of the protocol checked on the way.

use super::chunk::Chunk;
use super::client::Mode;
use super::codes::{ChunkType, Cmd, Errno, cmd_flag};
use super::coverage::Coverage;
use super::export::ExportInfo;
use super::meta::Context;
use super::request::Request;
use super::status::Status;

/// What the connection agreed on, as far as replies depend on it.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    pub(super) mode: Mode,
    pub(super) export: &'a ExportInfo,
    pub(super) contexts: &'a [Context],
}

impl<'a> Rules<'a> {
    #[track_caller]
    pub(super) fn new(
        mode: Mode,
        export: &'a Option<ExportInfo>,
        selection: &'a Option<(Vec<u8>, Vec<Context>)>,
    ) -> Self {
        let export = export.as_ref().expect("transmission was entered");
        let contexts = selection.as_ref().map_or(&[][..], |(_, contexts)| contexts);
        Self { mode, export, contexts }
    }

    pub(super) fn is_base_allocation(&self, id: u32) -> bool {
        self.contexts.iter().any(|context| context.id == id && context.name == "base:allocation")
    }
}

/// A piece of the content of a READ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Where.
    pub offset: u64,
    /// How long.
    pub length: u64,
    /// Sent as a hole, not as data.
    pub hole: bool,
}

/// An error of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorChunk {
    /// The error.
    pub error: Errno,
    /// Its text for a human.
    pub text: String,
    /// Where, if that was said.
    pub offset: Option<u64>,
}

/// A complete reply.
#[derive(Debug, Default)]
pub struct Reply {
    /// Cookie of the request.
    pub cookie: u64,
    /// Whether it came as a simple reply.
    pub simple: bool,
    /// Errors, in the order they came.
    pub errors: Vec<ErrorChunk>,
    /// Content, in the order it came; of a simple reply one piece.
    pub content: Vec<Content>,
    /// Extents, one entry a context.
    pub status: Vec<Status>,
    data: Vec<u8>,
}

impl Reply {
    /// The first error.
    pub fn error(&self) -> Option<Errno> {
        self.errors.first().map(|chunk| chunk.error)
    }

    /// The reply must be a success.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.errors.is_empty(), "the request failed: {:?}", self.errors);
        self
    }

    /// The reply must be this error.
    #[track_caller]
    pub fn expect_error(&self, error: Errno) {
        assert_eq!(self.error(), Some(error), "the reply's error, of {:?}", self.errors);
    }

    /// The content of a READ that succeeded.
    #[track_caller]
    pub fn data(self) -> Vec<u8> {
        self.ok().data
    }

    /// The extents of a `BLOCK_STATUS` that succeeded, on a connection with one context.
    #[track_caller]
    pub fn only_status(self) -> Status {
        let mut status = self.ok().status;
        assert_eq!(status.len(), 1, "one context was selected");
        status.remove(0)
    }
}

/// A request that waits for its reply, or for the rest of it.
#[derive(Debug)]
pub(super) struct Assembly {
    pub(super) command: Cmd,
    flags: u16,
    offset: u64,
    length: u64,
    /// Contexts named by the payload form of `BLOCK_STATUS`.
    asked: Option<Vec<u32>>,
    coverage: Coverage,
    pub(super) reply: Reply,
    pub(super) remarks: Vec<String>,
}

impl Assembly {
    pub(super) fn new(request: &Request, mode: Mode, cookie: u64) -> Self {
        let mut length = request.length;
        let mut asked = None;
        let flags = request.wire_flags(mode);
        if request.command == Cmd::BLOCK_STATUS
            && flags & cmd_flag::PAYLOAD_LEN != 0
            && let Some((effect, ids)) = request.payload.split_first_chunk()
        {
            length = u64::from_be_bytes(*effect);
            let ids = ids.as_chunks().0.iter().map(|id| u32::from_be_bytes(*id));
            asked = Some(ids.collect());
        }
        let (command, offset) = (request.command, request.offset);
        let coverage = match command {
            Cmd::READ => Coverage::new(offset, length),
            _ => Coverage::default(),
        };
        let reply = Reply { cookie, ..Reply::default() };
        let remarks = Vec::new();
        Self { command, flags, offset, length, asked, coverage, reply, remarks }
    }

    /// Length of the data that a simple reply without error carries.
    pub(super) fn simple_data_len(&self) -> usize {
        if self.command == Cmd::READ { self.length as usize } else { 0 }
    }

    /// A simple reply (S-REP-SIMPLE-02, S-CMD-BS-10, S-EH-01).
    #[track_caller]
    pub(super) fn accept_simple(&mut self, error: Option<Errno>, data: Vec<u8>, rules: &Rules<'_>) {
        assert_ne!(rules.mode, Mode::Extended, "S-EH-01: a simple reply under extended headers");
        self.reply.simple = true;
        if rules.mode == Mode::Structured {
            assert_ne!(self.command, Cmd::READ, "S-REP-SIMPLE-02: a simple reply to READ");
            if let Some(error) = error {
                self.remarks.push(format!("S-REP-STRUCT-12: {error:?} in a simple reply"));
            }
        }
        match error {
            Some(error) => {
                self.check_error(error, rules);
                self.reply.errors.push(ErrorChunk { error, text: String::new(), offset: None });
            }
            None => {
                assert_ne!(self.command, Cmd::BLOCK_STATUS, "S-CMD-BS-10: success without chunks");
                if !data.is_empty() {
                    let (offset, length) = (self.offset, self.length);
                    self.reply.content.push(Content { offset, length, hole: false });
                }
                self.reply.data = data;
            }
        }
    }

    /// A chunk; true if it was the last (S-REP-STRUCT-01).
    #[track_caller]
    pub(super) fn accept(&mut self, chunk: &Chunk, rules: &Rules<'_>) -> bool {
        if let Some(offset) = chunk.offset {
            assert_eq!(offset, self.offset, "S-EH-02: offset of a chunk for {:?}", self.command);
        }
        match chunk.kind {
            ChunkType::NONE => {}
            ChunkType::OFFSET_DATA | ChunkType::OFFSET_HOLE => self.accept_content(chunk, rules),
            ChunkType::BLOCK_STATUS | ChunkType::BLOCK_STATUS_EXT => {
                self.accept_status(chunk, rules);
            }
            _ => self.accept_error(chunk, rules),
        }
        if chunk.done {
            self.check_finished(rules);
        }
        chunk.done
    }

    /// S-REP-STRUCT-05, -07, -11, -13.
    #[track_caller]
    fn accept_content(&mut self, chunk: &Chunk, rules: &Rules<'_>) {
        assert_eq!(self.command, Cmd::READ, "S-REP-STRUCT-11: content for another command");
        let (offset, length, data) = chunk.content();
        if let (Some(sizes), Some(_)) = (rules.export.block_size, data) {
            assert!(length <= sizes.maximum.into(), "S-REP-STRUCT-13: {length} bytes, {sizes:?}");
        }
        if let Err(why) = self.coverage.insert(offset, length) {
            panic!("S-REP-STRUCT-05: {why}");
        }
        let mut failed = self.reply.errors.iter().filter_map(|error| error.offset);
        if let Some(at) = failed.find(|at| (offset..offset + length).contains(at)) {
            panic!("S-REP-STRUCT-05, -09: content {offset}+{length} after the error at {at}");
        }
        if self.reply.data.is_empty() {
            self.reply.data = vec![0; self.length as usize];
        }
        if let Some(data) = data {
            let start = (offset - self.offset) as usize;
            self.reply.data[start..start + data.len()].copy_from_slice(data);
        }
        let end = offset + length;
        if !end.is_multiple_of(512) && end != self.offset + self.length {
            self.remarks.push(format!("S-REP-STRUCT-12: a chunk ends at {end}, inside a sector"));
        }
        self.reply.content.push(Content { offset, length, hole: data.is_none() });
        let fragments = self.reply.content.len();
        let unfragmented = self.flags & cmd_flag::DF != 0;
        assert!(
            !unfragmented || fragments == 1,
            "S-REP-STRUCT-07: a DF read in {fragments} chunks"
        );
    }

    /// S-CMD-BS-01, -11, S-EH-07.
    #[track_caller]
    fn accept_status(&mut self, chunk: &Chunk, rules: &Rules<'_>) {
        assert_eq!(self.command, Cmd::BLOCK_STATUS, "S-REP-STRUCT-11: status for another command");
        let extended = chunk.kind == ChunkType::BLOCK_STATUS_EXT;
        assert_eq!(extended, rules.mode == Mode::Extended, "S-EH-07: {:?}", chunk.kind);
        let status = Status::parse(chunk);
        let id = status.context;
        assert!(self.expected(rules).contains(&id), "S-CMD-BS-11: context {id} was not asked for");
        let repeated = self.reply.status.iter().any(|other| other.context == id);
        assert!(!repeated, "S-CMD-BS-01: two chunks for context {id}");
        let req_one = self.flags & cmd_flag::REQ_ONE != 0;
        self.remarks.extend(status.check(self.offset, self.length, req_one, rules));
        self.reply.status.push(status);
    }

    fn expected(&self, rules: &Rules<'_>) -> Vec<u32> {
        let selected = || rules.contexts.iter().map(|context| context.id).collect();
        self.asked.clone().unwrap_or_else(selected)
    }

    /// S-REP-STRUCT-08 to -11.
    #[track_caller]
    fn accept_error(&mut self, chunk: &Chunk, rules: &Rules<'_>) {
        let (error, text, offset, excess) = chunk.error();
        assert_ne!(error, Errno(0), "S-REP-STRUCT-08: an error chunk without an error");
        self.check_error(error, rules);
        if let Some(at) = offset {
            let inside = at >= self.offset && at - self.offset < self.length;
            assert!(inside, "S-REP-STRUCT-09: error at {at} of {}+{}", self.offset, self.length);
            let located = !matches!(self.command, Cmd::FLUSH | Cmd::RESIZE);
            assert!(
                located && self.command.is_known(),
                "S-REP-STRUCT-11: an offset for {:?}",
                self.command
            );
        }
        let earlier = &self.reply.errors;
        if earlier.iter().any(|other| other.offset == offset || other.offset.is_none()) {
            self.remarks
                .push(format!("S-REP-STRUCT-10: {error:?} at {offset:?} after {earlier:?}"));
        }
        if text.len() > 256 {
            self.remarks.push(format!("B-CONV-04: error text of {} bytes", text.len()));
        }
        if excess > 0 {
            self.remarks.push(format!("S-REP-STRUCT-08: {excess} bytes after an error"));
        }
        self.reply.errors.push(ErrorChunk { error, text, offset });
    }

    /// S-ERR-01 and, as remarks, S-ERR-03 to S-ERR-05.
    #[track_caller]
    fn check_error(&mut self, error: Errno, rules: &Rules<'_>) {
        assert!(error.is_known(), "S-ERR-01: {error:?} is not an NBD error");
        let fast = self.command == Cmd::WRITE_ZEROES && self.flags & cmd_flag::FAST_ZERO != 0;
        let maximum = rules.export.block_size.map_or(1 << 25, |sizes| sizes.maximum);
        let long = self.command != Cmd::WRITE && self.length > maximum.into();
        let unfragmented = self.flags & cmd_flag::DF != 0 && self.length > 65536;
        let rule = match error {
            Errno::EOVERFLOW if !long && !unfragmented => "S-ERR-03",
            Errno::ENOTSUP if !fast => "S-ERR-04",
            Errno::ENOMEM => "S-ERR-05",
            _ => return,
        };
        self.remarks.push(format!("{rule}: {error:?} for {:?} of {}", self.command, self.length));
    }

    /// S-REP-STRUCT-06, -07, -15, S-CMD-BS-01.
    #[track_caller]
    fn check_finished(&mut self, rules: &Rules<'_>) {
        let failed = !self.reply.errors.is_empty();
        if self.reply.error() == Some(Errno::EOVERFLOW) && self.flags & cmd_flag::DF != 0 {
            let content = &self.reply.content;
            assert!(content.is_empty(), "S-REP-STRUCT-07: {content:?} and EOVERFLOW");
        }
        if failed {
            return;
        }
        if let Some((from, to)) = self.coverage.first_gap() {
            panic!("S-REP-STRUCT-06, -15: success, but {from:#x}..{to:#x} did not come");
        }
        if self.command == Cmd::BLOCK_STATUS {
            let expected = self.expected(rules);
            let found = self.reply.status.len();
            assert!(found > 0, "S-CMD-BS-08: success without a selected context");
            assert_eq!(found, expected.len(), "S-CMD-BS-01: one chunk for each of {expected:?}");
        }
    }
}
