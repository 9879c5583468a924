//! Extents that break the rules.

use nbd_engine::client::Flags;
use nbd_proto::wire::ErrorCode;
use nbd_testkit::raw::{ChunkType, Cmd, Mode};
use nbd_testkit::scripted::{Answer, payload};

use super::table::{
    AT, Ask, CHUNKED, Fate, LENGTH, case, connect, entered, expect_alive, config, which,
};
use crate::ClientSetup;

const STRUCTURED: &[Mode] = &[Mode::Structured];
const EXTENDED: &[Mode] = &[Mode::Extended];

/// What contradicts itself, the request, or the selection (C-CMD-BS-14, C-EH-20).
pub fn faults_of_extents_end_the_connection(setup: ClientSetup) {
    use Ask::{Status, StatusOfOne};
    use Fate::Breaks;
    let context = Breaks(which!(PeerMisbehaved(Peer::UnexpectedContext(_))));
    let malformed = Breaks(which!(Malformed(_)));
    let kind = Breaks(which!(PeerMisbehaved(Peer::UnexpectedReply { .. })));
    let one = Breaks(which!(PeerMisbehaved(Peer::MoreThanOneExtent)));
    let too_long = Breaks(which!(LimitExceeded(Limit::Chunk { .. })));
    let simple = Breaks(which!(PeerMisbehaved(Peer::SimpleReply(_))));
    let wide = |count, extents: &[_]| {
        Answer::chunk(ChunkType::BLOCK_STATUS_EXT, payload::status_ext(1, count, extents))
    };
    let narrow = |payload: &[u8]| Answer::chunk(ChunkType::BLOCK_STATUS, payload);
    let whole = LENGTH as u32;
    let lying = payload::status(1, &[(512, 0)]);
    for case in [
        case("C-CMD-BS-14", STRUCTURED, Status, [Answer::status(2, &[(whole, 0)])], context),
        case("C-CMD-BS-14", EXTENDED, Status, [Answer::status_ext(2, &[(1024, 0)])], context),
        case("C-CMD-BS-14", STRUCTURED, Status, [
            Answer::status(1, &[(512, 0)]), Answer::status(1, &[(512, 0)]),
        ], context),
        case("C-CMD-BS-14", STRUCTURED, Status, [Answer::status(1, &[(512, 0), (0, 1)])], malformed),
        case("C-CMD-BS-14", EXTENDED, Status, [Answer::status_ext(1, &[(0, 0)])], malformed),
        case("C-CMD-BS-14", EXTENDED, Status, [
            Answer::status_ext(1, &[(u64::MAX, 0), (512, 1)]),
        ], malformed),
        case("C-CMD-BS-14", STRUCTURED, StatusOfOne, [Answer::status(1, &[(512, 0), (512, 1)])], one),
        case("C-CMD-BS-14", STRUCTURED, StatusOfOne, [Answer::status(1, &[(1025, 0)])], one),
        case("C-CMD-BS-14", EXTENDED, StatusOfOne, [Answer::status_ext(1, &[(1 << 40, 0)])], one),
        case("C-REP-STRUCT-01", STRUCTURED, Status, [Answer::status_ext(1, &[(1024, 0)])], kind),
        case("C-REP-STRUCT-01", EXTENDED, Status, [Answer::status(1, &[(whole, 0)])], kind),
        case("C-REP-STRUCT-01", &CHUNKED, Status, [Answer::data(AT, &[0; 512])], kind),
        case("C-REP-STRUCT-08", STRUCTURED, Status, [
            Answer::simple(nbd_testkit::raw::Errno(0), &[]),
        ], simple),
        case("C-EH-20", EXTENDED, Status, [wide(2, &[(1024, 0)])], malformed),
        case("C-EH-20", EXTENDED, Status, [wide(0, &[(1024, 0)])], malformed),
        case("C-EH-20", EXTENDED, Status, [wide(u32::MAX, &[(1024, 0)])], malformed),
        case("C-REP-STRUCT-01", STRUCTURED, Status, [narrow(&[0, 0, 0, 1])], malformed),
        case("C-REP-STRUCT-01", STRUCTURED, Status, [narrow(&[0, 0, 0, 1, 0, 0, 2, 0])], malformed),
        case("C-SZ-19", STRUCTURED, Status, [narrow(&lying).length(4 + 8 * (1 << 28))], too_long),
        case("C-SZ-19", EXTENDED, Status, [
            wide(1 << 28, &[(512, 0)]).length(8 + 16 * (1 << 28)),
        ], too_long),
    ] {
        case.play(setup);
    }
    let incomplete = Fate::Fails(ErrorCode::EIO);
    case("C-CMD-BS-14", &CHUNKED, Status, [Answer::none().done()], incomplete).play(setup);
}

/// Short answers, equal neighbours, unknown states and an end past the request are all right (C-CMD-BS-13, C-META-07).
pub fn extents_may_fall_short_or_reach_past(setup: ClientSetup) {
    const STATE: u32 = 0xf0;
    for mode in CHUNKED {
        for lengths in [&[512][..], &[256, 256, 256], &[512, 1 << 20], &[u32::MAX, 512]] {
            let what = format!("C-CMD-BS-13, {mode:?}, {lengths:?}");
            let answer = match mode {
                Mode::Extended => {
                    let wide = |length: &u32| (u64::from(*length), STATE.into());
                    Answer::status_ext(1, &lengths.iter().map(wide).collect::<Vec<_>>())
                }
                _ => {
                    let narrow = |length: &u32| (*length, STATE);
                    Answer::status(1, &lengths.iter().map(narrow).collect::<Vec<_>>())
                }
            };
            let script = entered(mode).request(Cmd::BLOCK_STATUS).answer(answer.done()).serve();
            let server = setup.play([script]);
            let client = connect(setup, &server, &config(), &what);
            let found = client.block_status(AT, LENGTH as u64, Flags::empty()).expect(&what);
            let found = found[0].extents.iter();
            let expected = lengths.iter().map(|length| (u64::from(*length), u64::from(STATE)));
            let same = found.map(|extent| (extent.length, extent.status)).eq(expected);
            assert!(same, "{what}");
            expect_alive(&*client, &what);
            drop(client);
            server.finish();
        }
    }
}
