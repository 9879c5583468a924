//! Volumes with names of any characters: each has all of its objects below the prefix that its URL names, and none below
//! another one's.

use std::sync::Arc;

use futures_util::TryStreamExt;
use nbd_testkit::{Random, cases};
use nbd_volume::{Location, NewVolume, Volume, check, clone, create, delete, info, list, snapshot};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;

use crate::model::{read, write};
use crate::{in_virtual_time, options};

/// What names are made of: what ways to make paths encode, do not encode, or encode once more.
const PIECES: [&str; 32] = [
    "a", "b", "%", "25", "%25", "%2525", "~", "ü", "🦀", " ", "=", "==", "=25", "=C3=BC", "#",
    "#1", "*", "?", "\"", "'", "[", "]", "{}", "|", "^", "\\", "`", "<>", ".", "..", "@", "+",
];

/// A name that stores take, of one part or some.
fn name(random: &mut Random) -> String {
    loop {
        let mut name = String::new();
        for part in 0..=random.below(3) {
            if part > 0 {
                name.push('/');
            }
            for _ in 0..=random.below(4) {
                name.push_str(PIECES[random.below(PIECES.len() as u64) as usize]);
            }
        }
        if Path::parse(&name).is_ok_and(|path| path.as_ref() == name) {
            return name;
        }
    }
}

/// The name in one of the forms that it has somewhere.
fn encoded(name: &str, mark: char, all: bool) -> String {
    let mut encoded = String::new();
    for byte in name.bytes() {
        match byte.is_ascii_alphanumeric() || byte == b'/' || !all && b" .=@+'".contains(&byte) {
            true => encoded.push(char::from(byte)),
            false => encoded.push_str(&format!("{mark}{byte:02X}")),
        }
    }
    encoded
}

/// Another name, which may be a form of the first one, and is neither above nor below it.
fn similar(random: &mut Random, first: &str) -> String {
    loop {
        let second = match random.below(5) {
            0 => name(random),
            1 => encoded(first, '%', true),
            2 => encoded(first, '%', false),
            3 => encoded(first, '=', false),
            _ => first.split('/').map(|part| encoded(&format!("={part}"), '=', false)).fold(
                String::new(),
                |all, part| {
                    if all.is_empty() { part } else { format!("{all}/{part}") }
                },
            ),
        };
        let (a, b) = (Path::parse(first), Path::parse(&second));
        if let (Ok(a), Ok(b)) = (a, b)
            && !a.prefix_matches(&b)
            && !b.prefix_matches(&a)
        {
            return second;
        }
    }
}

/// Two volumes and a clone, from their creation to their end. `located` has the location of a path, `listed` that of a URL,
/// `store` the objects with the same paths.
async fn live(
    names: [&str; 3],
    store: &dyn ObjectStore,
    located: impl Fn(&str) -> Location,
    listed: impl Fn(&str) -> Location,
) {
    let paths = names.map(|name| format!("disks/{name}"));
    let counts = async || {
        let objects: Vec<_> = store.list(None).try_collect().await.unwrap();
        let prefixes = paths.each_ref().map(|path| Path::parse(path).unwrap());
        let of = |prefix: &Path| {
            objects.iter().filter(|object| object.location.prefix_matches(prefix)).count()
        };
        let counts = prefixes.each_ref().map(of);
        assert_eq!(counts.iter().sum::<usize>(), objects.len(), "{names:?}: {objects:?}");
        counts
    };
    let [one, two, copy] = paths.each_ref().map(|path| located(path));
    for (location, text) in [(&one, b"one"), (&two, b"two")] {
        create(location, &NewVolume::of_size(1 << 20)).await.unwrap();
        let volume = Volume::open(location, &options()).await.unwrap();
        write(&volume, text, 0).await.unwrap();
        volume.close().await.unwrap();
    }
    snapshot(&one, "kept").await.unwrap();
    clone(&one, Some("kept"), &copy).await.unwrap();
    let holds = async |location: &Location, text: &[u8]| {
        let volume = Volume::open(location, &options()).await.unwrap();
        assert_eq!(read(&volume, 0..3).await.unwrap(), text, "{names:?}");
        volume.close().await.unwrap();
        assert_eq!(check(location, None, |_| ()).await.unwrap().damage, [], "{names:?}");
    };
    holds(&two, b"two").await;
    holds(&copy, b"one").await;
    let urls = list(&located("disks")).await.unwrap();
    assert_eq!(urls.len(), 3, "{names:?}: {urls:?}");
    for url in urls {
        let again = listed(&url.to_string());
        info(&again).await.unwrap();
    }
    let before = counts().await;
    for (location, count) in [&one, &two, &copy].into_iter().zip(before) {
        assert_eq!(info(location).await.unwrap().objects, count as u64, "{names:?}");
    }
    delete(&two).await.unwrap();
    assert_eq!(counts().await, [before[0], 0, before[2]], "{names:?}");
    holds(&one, b"one").await;
    holds(&copy, b"one").await;
    delete(&copy).await.unwrap();
    let old = Volume::open_snapshot(&one, "kept", &options()).await.unwrap();
    assert_eq!(read(&old, 0..3).await.unwrap(), b"one", "{names:?}");
    drop(old);
    delete(&one).await.unwrap();
    assert_eq!(counts().await, [0; 3], "{names:?}");
}

#[test]
fn volumes_lie_below_their_names_whatever_those_are() {
    cases(12, |random| {
        let first = name(random);
        let second = similar(random, &first);
        let third = format!("copy of {}", name(random));
        in_virtual_time(async {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let root = Location::over(Arc::clone(&store), "disks");
            let of = |path: &str| root.sibling(path);
            let of_url = |url: &str| of(url.strip_prefix("memory:").unwrap());
            live([&first, &second, &third], &store, of, of_url).await;
        });
    });
}

#[test]
fn volumes_in_a_directory_lie_below_their_names_and_leave_no_folders() {
    cases(3, |random| {
        let folder = tempfile::tempdir().unwrap();
        let first = name(random);
        let second = similar(random, &first);
        let third = format!("copy of {}", name(random));
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
            let of = |path: &str| {
                let url =
                    format!("file://{}/{}", folder.path().display(), encoded(path, '%', true));
                Location::parse(&url).unwrap()
            };
            let of_url = |url: &str| Location::parse(url).unwrap();
            live([&first, &second, &third], &store, of, of_url).await;
        });
        for name in [&first, &second, &third] {
            assert!(!folder.path().join("disks").join(name).exists(), "{name}");
        }
    });
}
