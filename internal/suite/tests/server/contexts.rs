//! Metadata contexts of an export's own, from its traits to the wire.

use std::sync::Arc;

use nbd_engine::export::{
    AnyExport, BlockSize, Export, ExportMap, Memory, Tracked, WithAllocationDepth, WithBlockSize,
};
use nbd_engine::server::ServerConfig;
use nbd_suite::Served;
use nbd_suite::exports::{HUGE, Striped, Way};
use nbd_testkit::raw::{Errno, RawClient, Rep, Request, cmd_flag};

const K64: u64 = 64 << 10;

/// A memory disk with two dirty blocks, of which one is allocated, and both contexts of qemu.
fn tracked() -> Arc<Tracked<WithAllocationDepth<Memory>>> {
    let disk = Tracked::new(WithAllocationDepth::new(Memory::new(16 * K64).unwrap()));
    disk.tracker().start("one").unwrap();
    Export::can_write(&disk).unwrap().write(&[1; K64 as usize], 2 * K64, false).unwrap();
    Export::can_trim(&disk).unwrap().trim(5 * K64, K64, false).unwrap();
    disk.tracker().start("two").unwrap();
    Arc::new(disk)
}

fn serve(disk: &Arc<Tracked<WithAllocationDepth<Memory>>>) -> Served {
    Served::start(ExportMap::new().with("", Arc::clone(disk)).unwrap(), ServerConfig::default())
}

fn structured(served: &Served, queries: &[&str]) -> (RawClient, Vec<(u32, String)>) {
    let mut client = RawClient::negotiate(served.endpoint());
    client.structured_reply().unwrap();
    select(client, queries)
}

fn extended(served: &Served, queries: &[&str]) -> (RawClient, Vec<(u32, String)>) {
    let mut client = RawClient::negotiate(served.endpoint());
    client.extended_headers().unwrap();
    select(client, queries)
}

fn select(mut client: RawClient, queries: &[&str]) -> (RawClient, Vec<(u32, String)>) {
    let contexts = client.set_meta_context("", queries).unwrap();
    client.go("", &[]).unwrap();
    (client, contexts.into_iter().map(|context| (context.id, context.name)).collect())
}

fn status(client: &mut RawClient, request: &Request, context: u32) -> Vec<(u64, u64)> {
    let reply = client.call(request).ok();
    let found = reply.status.iter().find(|status| status.context == context).unwrap();
    found.extents.iter().map(|extent| (extent.length, extent.flags)).collect()
}

#[test]
fn own_contexts_are_listed_by_name_and_by_the_start_of_it() {
    let served = serve(&tracked());
    let mut client = RawClient::negotiate(served.endpoint());
    client.structured_reply().unwrap();
    let mut list = |queries: &[&str]| {
        let found = client.list_meta_context("", queries).unwrap();
        found.into_iter().map(|context| context.name).collect::<Vec<_>>()
    };
    let bitmaps = ["qemu:dirty-bitmap:one", "qemu:dirty-bitmap:two"];
    assert_eq!(list(&["qemu:dirty-bitmap:"]), bitmaps);
    assert_eq!(list(&["qemu:dirty-bitmap:two"]), bitmaps[1..]);
    assert_eq!(list(&["qemu:"]), [bitmaps[0], bitmaps[1], "qemu:allocation-depth"]);
    assert_eq!(list(&[]).len(), 4);
    assert!(list(&["qemu:dirty-bitmap", "qemu:dirty-bitmap:o", "x-a:"]).is_empty());
    client.finish();
}

#[test]
fn the_start_of_a_name_selects_nothing() {
    let served = serve(&tracked());
    let (client, contexts) = structured(&served, &["qemu:", "qemu:dirty-bitmap:"]);
    assert_eq!(contexts, []);
    client.finish();
}

#[test]
fn every_selected_context_is_answered() {
    let served = serve(&tracked());
    let queries = ["base:allocation", "qemu:dirty-bitmap:one", "qemu:allocation-depth"];
    for select in [structured, extended] {
        let (mut client, contexts) = select(&served, &queries);
        let id = |name: &str| contexts.iter().find(|context| context.1 == name).unwrap().0;
        let request = Request::block_status(0, 16 * K64);
        let reply = client.call(&request).ok();
        assert_eq!(reply.status.len(), 3);
        assert_eq!(
            status(&mut client, &request, id(queries[0])),
            [(2 * K64, 3), (K64, 0), (13 * K64, 3)]
        );
        assert_eq!(
            status(&mut client, &request, id(queries[1])),
            [(2 * K64, 0), (K64, 1), (2 * K64, 0), (K64, 1), (10 * K64, 0)]
        );
        assert_eq!(
            status(&mut client, &request, id(queries[2])),
            [(2 * K64, 0), (K64, 1), (13 * K64, 0)]
        );
        client.finish();
    }
}

#[test]
fn a_request_for_some_contexts_is_answered_for_those() {
    let served = serve(&tracked());
    let queries = ["base:allocation", "qemu:dirty-bitmap:one", "qemu:dirty-bitmap:two"];
    let (mut client, contexts) = extended(&served, &queries);
    let ids: Vec<u32> = contexts.iter().map(|context| context.0).collect();
    for wanted in [&ids[1..2], &ids[2..], &ids[..2], &[ids[2], ids[0]]] {
        let reply = client.call(&Request::block_status_of(0, 16 * K64, wanted)).ok();
        let mut got: Vec<u32> = reply.status.iter().map(|status| status.context).collect();
        let mut wanted = wanted.to_vec();
        got.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(got, wanted);
    }
    client.finish();
}

#[test]
fn a_context_that_is_gone_fails_its_requests_alone() {
    let disk = tracked();
    let served = serve(&disk);
    let (mut client, contexts) = extended(&served, &["base:allocation", "qemu:dirty-bitmap:two"]);
    client.call(&Request::block_status(0, K64)).ok();
    disk.tracker().stop("two");
    client.call(&Request::block_status(0, K64)).expect_error(Errno::EINVAL);
    let base = contexts.iter().find(|context| context.1 == "base:allocation").unwrap().0;
    client.call(&Request::block_status_of(0, K64, &[base])).ok();
    client.finish();
}

#[test]
fn a_wide_context_is_there_under_extended_headers_alone() {
    for way in Striped::WAYS {
        let served = Served::start(Striped::exports(way), ServerConfig::default());
        let (client, contexts) = structured(&served, &["x-wide:stripe"]);
        assert_eq!(contexts, []);
        client.finish();
        let (mut client, contexts) = extended(&served, &["x-wide:stripe"]);
        let request = Request::block_status(1 << 40, 2 << 40);
        assert_eq!(
            status(&mut client, &request, contexts[0].0),
            [(1 << 40, 1 << 40), (1 << 40, 0)]
        );
        client.finish();
    }
}

#[test]
fn a_context_can_be_made_for_a_query() {
    for way in Striped::WAYS {
        let served = Served::start(Striped::exports(way), ServerConfig::default());
        let queries = ["x-stripes:2048", "x-stripes:zero", "x-stripes:largest"];
        let (mut client, contexts) = structured(&served, &queries);
        let names: Vec<&str> = contexts.iter().map(|context| &*context.1).collect();
        assert_eq!(names, ["x-stripes:2048", "x-stripes:4194304"]);
        let request = Request::block_status(1024, 4096);
        assert_eq!(status(&mut client, &request, contexts[0].0), [(1024, 0), (2048, 1), (2048, 0)]);
        assert_eq!(
            status(&mut client, &request, contexts[1].0),
            [(4 << 20, 0)].map(|run| (run.0 - 1024, run.1))
        );
        client.finish();
    }
}

#[test]
fn more_contexts_than_the_most_at_once_are_refused() {
    let served = Served::start(Striped::exports(Way::Inline), ServerConfig::default());
    let mut client = RawClient::negotiate(served.endpoint());
    client.structured_reply().unwrap();
    let names: Vec<String> = (1..1000).map(|n| format!("x-stripes:{}", n * 512)).collect();
    let queries: Vec<&str> = names.iter().map(|name| &**name).collect();
    assert_eq!(client.set_meta_context("", &queries).unwrap_err().code, Rep::ERR_TOO_BIG);
    assert_eq!(client.set_meta_context("", &queries[..16]).unwrap().len(), 16);
    client.finish();
}

#[test]
fn millions_of_extents_stay_within_the_bound_and_make_progress() {
    for way in Striped::WAYS {
        let served = Served::start(Striped::exports(way), ServerConfig::default());
        let (mut client, contexts) = extended(&served, &["base:allocation", "x-stripes:1024"]);
        let mut at = [0; 2];
        for _ in 0..3 {
            let offset = at[0].min(at[1]);
            let reply = client.call(&Request::block_status(offset, HUGE - offset)).ok();
            for (end, (id, _)) in at.iter_mut().zip(&contexts) {
                let status = reply.status.iter().find(|status| status.context == *id).unwrap();
                assert_eq!(status.extents.len(), 4096);
                assert!(offset + status.total() > *end, "{way:?} makes progress");
                *end = offset + status.total();
            }
        }
        let one = Request::block_status(HUGE - 512, 512).flags(cmd_flag::REQ_ONE);
        assert_eq!(status(&mut client, &one, contexts[0].0), [(512, 3)]);
        client.finish();
    }
}

#[test]
fn an_export_of_large_blocks_reports_whole_blocks() {
    let sizes = BlockSize::new(4096, 4096, 1 << 20).unwrap();
    let disk = |way| WithBlockSize::new(Striped(way), sizes);
    for export in
        [AnyExport::new_blocking(disk(Way::Workers)), AnyExport::new_async(disk(Way::Async))]
    {
        let served = Served::only(export);
        let (mut client, contexts) = structured(&served, &["base:allocation", "x-stripes:6144"]);
        let request = Request::block_status(0, 16384);
        // Data and hole in every block: all is data.
        let allocation = status(&mut client, &request, contexts[0].0);
        assert!(allocation[0].0 >= 16384 && allocation[0].1 == 0, "{allocation:?}");
        // Blocks of 4096, marked from 6144 to 12288.
        let stripes = status(&mut client, &request, contexts[1].0);
        assert_eq!(stripes[..2], [(4096, 0), (8192, 1)]);
        client.finish();
    }
}
