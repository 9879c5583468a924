//! Each golden transcript again, with our machine in the place of either side, with its stream cut in several ways.
//!
//! As client, our machine must say the bytes that the recorded client said, and understand what it got as that one did.
//! As server, it must understand all of the recorded client, and its replies must mean what the recorded ones meant. Where
//! it differs, the difference is written down here, with its reason.

use std::collections::BTreeSet;
use std::path::PathBuf;

use nbd_oracles::replay;
use nbd_oracles::transcript::Transcript;
use nbd_pair::split::Split;

/// How to replay a transcript.
struct Golden {
    name: &'static str,
    /// What our strict client would not send, if there is something.
    refused: Option<&'static str>,
    /// Where our server differs, in order.
    differences: &'static [&'static str],
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("transcripts")
}

fn transcript(name: &str) -> Transcript {
    let path = folder().join(format!("{name}.txt"));
    let text = std::fs::read_to_string(&path).expect("the transcript can be read");
    Transcript::parse(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn replay_as_client(golden: &Golden) {
    let transcript = transcript(golden.name);
    let strict = replay::as_client(&transcript, &Split::Whole, true);
    match (golden.refused, strict) {
        (None, result) => drop(result.expect("our client does what the recorded one did")),
        (Some(text), Err(error)) => assert!(error.starts_with(text), "{error}"),
        (Some(text), Ok(_)) => panic!("our client should have refused: {text}"),
    }
    let strict = golden.refused.is_none();
    let mut expected = None;
    for split in Split::fixed() {
        let log = replay::as_client(&transcript, &split, strict);
        let log = log.unwrap_or_else(|error| panic!("{split:?}: {error}"));
        assert_eq!(*expected.get_or_insert_with(|| log.clone()), log, "{split:?}");
    }
}

fn replay_as_server(golden: &Golden) {
    let transcript = transcript(golden.name);
    let mut expected = None;
    for split in Split::fixed() {
        let (recorded, ours, log) = replay::as_server(&transcript, &split)
            .unwrap_or_else(|error| panic!("{split:?}: {error}"));
        assert!(replay::is_complete(&recorded) && replay::is_complete(&ours));
        let found = replay::differences(&recorded, &ours);
        assert_eq!(found, golden.differences, "{split:?}");
        assert_eq!(*expected.get_or_insert_with(|| log.clone()), log, "{split:?}");
    }
}

macro_rules! golden {
    ($($module:ident = $name:literal $(, refused: $refused:literal)? $(, differences: $differences:expr)?;)*) => {
        /// All transcripts.
        const GOLDEN: &[&Golden] = &[$(&$module::GOLDEN),*];

        $(mod $module {
            use super::*;

            pub(crate) const GOLDEN: Golden = Golden {
                name: $name,
                refused: golden!(@option $($refused)?),
                differences: golden!(@list $($differences)?),
            };

            #[test]
            fn as_client() {
                replay_as_client(&GOLDEN);
            }

            #[test]
            fn as_server() {
                replay_as_server(&GOLDEN);
            }
        })*
    };
    (@option $value:literal) => { Some($value) };
    (@option) => { None };
    (@list $value:expr) => { &$value };
    (@list) => { &[] };
}

golden! {
    libnbd_122_nbdkit_options = "libnbd-1.22-nbdkit-options",
        refused: "metadata contexts need structured replies",
        // nbdkit lists contexts before structured replies were agreed, which it may, as well as refuse it (S-OPT-LM-09).
        // It takes any length; ours tells its own limit.
        differences: [
            "NBD_OPT_LIST_META_CONTEXT end: NBD_REP_ACK, ours: NBD_REP_ERR_INVALID",
            "NBD_OPT_LIST_META_CONTEXT base:allocation: listed as 0, ours: nothing",
            "NBD_OPT_INFO block size: BlockSizeInfo { minimum: 1, preferred: 32768, \
             maximum_payload: 4294967295 }, ours: BlockSizeInfo { minimum: 1, preferred: 32768, \
             maximum_payload: 33554432 }",
            "NBD_OPT_GO block size: BlockSizeInfo { minimum: 1, preferred: 32768, \
             maximum_payload: 4294967295 }, ours: BlockSizeInfo { minimum: 1, preferred: 32768, \
             maximum_payload: 33554432 }",
        ];
    libnbd_122_qemu_nbd_extended = "libnbd-1.22-qemu-nbd-extended",
        refused: "the request reaches past the end",
        // qemu-nbd tells a write past the end by its text alone, not by ENOSPC (S-REQ-09). It takes the payloads of
        // writes that lack PAYLOAD_LEN, which libnbd leaves out when it is not to be strict.
        differences: [
            "NBD_CMD_WRITE at 65024+1024 error: Some(NBD_EINVAL), ours: Some(NBD_ENOSPC)",
            "NBD_CMD_WRITE_ZEROES at 0+8589934592 error: Some(NBD_EINVAL), ours: Some(NBD_ENOSPC)",
        ];
    libnbd_nbd_server_export_name = "libnbd-nbd-server-export-name";
    libnbd_nbd_server_go = "libnbd-nbd-server-go";
    libnbd_nbd_server_options = "libnbd-nbd-server-options",
        refused: "the export is read-only",
        // nbd-server tells no size on INFO, only on GO. It offers WRITE_ZEROES on a read-only export.
        differences: [
            "NBD_OPT_INFO size and flags: 0 0x0143, ours: 65536 0x0103",
            "NBD_OPT_GO size and flags: 65536 0x0143, ours: 65536 0x0103",
        ];
    libnbd_nbdkit_blocksize = "libnbd-nbdkit-blocksize",
        refused: "the request is not aligned",
        // Both are allowed for a read that is too long (S-ERR-03).
        differences: ["NBD_CMD_READ at 0+16384 error: Some(NBD_EINVAL), ours: Some(NBD_EOVERFLOW)"];
    libnbd_nbdkit_errors = "libnbd-nbdkit-errors";
    libnbd_nbdkit_in_flight = "libnbd-nbdkit-in-flight";
    libnbd_nbdkit_oldstyle = "libnbd-nbdkit-oldstyle";
    libnbd_nbdkit_options = "libnbd-nbdkit-options";
    libnbd_nbdkit_plain_newstyle = "libnbd-nbdkit-plain-newstyle";
    libnbd_nbdkit_simple = "libnbd-nbdkit-simple", refused: "the request reaches past the end";
    libnbd_nbdkit_structured = "libnbd-nbdkit-structured",
        refused: "the request reaches past the end";
    libnbd_qemu_nbd_structured = "libnbd-qemu-nbd-structured",
        refused: "the export is read-only",
        // qemu-nbd tells that the export is read-only by its text alone, not by EPERM (S-REQ-12).
        differences: [
            "NBD_CMD_WRITE at 0+512 error: Some(NBD_EINVAL), ours: Some(NBD_EPERM)",
            "NBD_CMD_WRITE_ZEROES at 0+512 error: Some(NBD_EINVAL), ours: Some(NBD_EPERM)",
        ];
    // nbd-client hangs up behind its ABORT.
    nbd_client_nbd_server_list = "nbd-client-nbd-server-list",
        differences: ["NBD_OPT_ABORT end: none, ours: NBD_REP_ACK"];
    nbd_client_nbd_server = "nbd-client-nbd-server";
    nbdcopy_122_qemu_nbd_extended = "nbdcopy-1.22-qemu-nbd-extended";
    nbdcopy_nbdkit_read = "nbdcopy-nbdkit-read";
    nbdcopy_nbdkit_write = "nbdcopy-nbdkit-write";
    nbdinfo_122_qemu_nbd_dirty_bitmap = "nbdinfo-1.22-qemu-nbd-dirty-bitmap";
    // qemu-nbd tells BLOCK_STATUS_PAYLOAD on INFO though no contexts are selected; ours waits for them (S-XF-07).
    nbdinfo_122_qemu_nbd_extended = "nbdinfo-1.22-qemu-nbd-extended",
        differences: [
            "NBD_OPT_INFO size and flags: 65536 0x1ced, ours: 65536 0x0ced",
            "NBD_OPT_INFO size and flags: 65536 0x1ced, ours: 65536 0x0ced",
        ];
    nbdinfo_nbdkit_list = "nbdinfo-nbdkit-list";
    nbdinfo_nbdkit_map = "nbdinfo-nbdkit-map";
    nbdinfo_nbdkit = "nbdinfo-nbdkit";
    nbdinfo_qemu_nbd = "nbdinfo-qemu-nbd";
    qemu_img_qemu_nbd_allocation_depth = "qemu-img-qemu-nbd-allocation-depth";
    qemu_img_qemu_nbd_convert = "qemu-img-qemu-nbd-convert";
    qemu_img_qemu_nbd_dirty_bitmap = "qemu-img-qemu-nbd-dirty-bitmap";
    qemu_img_qemu_nbd_map = "qemu-img-qemu-nbd-map";
    qemu_img_qemu_nbd_unknown_export = "qemu-img-qemu-nbd-unknown-export";
    qemu_io_nbdkit_simple = "qemu-io-nbdkit-simple";
    qemu_io_nbdkit_structured = "qemu-io-nbdkit-structured";
    // qemu-nbd sends a description that was not asked for.
    qemu_io_qemu_nbd_extended = "qemu-io-qemu-nbd-extended",
        differences: ["NBD_OPT_GO description: \"a raw disk\", ours: nothing"];
    qemu_nbd_list = "qemu-nbd-list",
        differences: ["NBD_OPT_INFO size and flags: 65536 0x148f, ours: 65536 0x048f"];
}

#[test]
fn each_transcript_is_replayed() {
    let files = std::fs::read_dir(folder()).expect("the folder can be read");
    let names = files.map(|file| file.expect("the folder can be read").file_name());
    let names = names.filter_map(|name| Some(name.to_str()?.strip_suffix(".txt")?.to_owned()));
    let listed: BTreeSet<_> = GOLDEN.iter().map(|golden| golden.name.to_owned()).collect();
    assert_eq!(names.collect::<BTreeSet<_>>(), listed);
}

#[test]
fn each_transcript_names_its_origin() {
    for golden in GOLDEN {
        let transcript = transcript(golden.name);
        for field in ["title", "server", "client", "recorded", "serve", "run"] {
            assert!(!transcript.field(field).is_empty(), "{} has no {field}", golden.name);
        }
        let versions = [transcript.field("server"), transcript.field("client")];
        let numbered = |version: &&str| version.contains(|c: char| c.is_ascii_digit());
        assert!(versions.iter().all(numbered), "{}: {versions:?}", golden.name);
    }
}
