//! Faults that are put in on purpose, to show that the oracle finds them.

use core::fmt;
use core::str::FromStr;

/// A fault of the disk, the wire, the runtime or a client that must not stay unnoticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names say it")]
pub enum Mutation {
    FlushNotDone,
    FlushForgetsTheLatest,
    FuaIgnored,
    WriteLost,
    WriteHalfDone,
    WriteLate,
    WriteTwice,
    WriteMisplaced,
    ReadFromDurable,
    DurableLost,
    FailedWriteReportedGood,
    FailedFlushTakenForGood,
    AnswerTakenBeforeItCame,
    ErrorFromNowhere,
    ReplyDropped,
    ReplyDoubled,
    CookiesCrossed,
    DataCorrupted,
    WakeLost,
    TimersLate,
    MemoryLeaked,
    MemoryHoarded,
    DoubtNotReported,
    KeptNotWrittenAgain,
    SilenceUnnoticed,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 25] = [
        Self::FlushNotDone,
        Self::FlushForgetsTheLatest,
        Self::FuaIgnored,
        Self::WriteLost,
        Self::WriteHalfDone,
        Self::WriteLate,
        Self::WriteTwice,
        Self::WriteMisplaced,
        Self::ReadFromDurable,
        Self::DurableLost,
        Self::FailedWriteReportedGood,
        Self::FailedFlushTakenForGood,
        Self::AnswerTakenBeforeItCame,
        Self::ErrorFromNowhere,
        Self::ReplyDropped,
        Self::ReplyDoubled,
        Self::CookiesCrossed,
        Self::DataCorrupted,
        Self::WakeLost,
        Self::TimersLate,
        Self::MemoryLeaked,
        Self::MemoryHoarded,
        Self::DoubtNotReported,
        Self::KeptNotWrittenAgain,
        Self::SilenceUnnoticed,
    ];
}

impl Mutation {
    /// Whether replies are broken on their way, which only simple replies can be.
    #[must_use]
    pub const fn is_on_the_wire(self) -> bool {
        matches!(
            self,
            Self::ReplyDropped | Self::ReplyDoubled | Self::CookiesCrossed | Self::DataCorrupted
        )
    }
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FromStr for Mutation {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|mutation| mutation.to_string() == name);
        found.ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(ToString::to_string).collect();
            format!("no such mutation; there are {}", names.join(", "))
        })
    }
}
