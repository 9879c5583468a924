//! Which file a path leads to, however it is spelled.

use std::fs::{self, Metadata};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nbd_engine::export::FileId;
use nbd_engine::net::link_end;

/// A file, directory or block device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Identity {
    File(FileId),
    BlockDevice(u64),
    /// A file by a folder and its path from there: it may not be there yet, nor the folders on the way to it.
    Named(FileId, PathBuf),
}

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        match metadata.file_type().is_block_device() {
            true => Self::BlockDevice(metadata.rdev()),
            false => Self::File(FileId::of(metadata)),
        }
    }

    /// Those of a path, each once: by its name, by that of the file that a link leads to, and of the file if there is one.
    /// Two paths that share one lead to the same file.
    pub(super) fn of_path(path: &Path) -> impl Iterator<Item = Self> + use<> {
        let named = Self::named(path);
        let target = Self::named(&link_end(path)).filter(|target| Some(target) != named.as_ref());
        let file = fs::metadata(path).ok().map(|metadata| Self::of(&metadata));
        named.into_iter().chain(target).chain(file)
    }

    /// By its name, in the last folder on the way to it that is there.
    fn named(path: &Path) -> Option<Self> {
        let absolute = std::path::absolute(path).ok()?;
        let name = absolute.file_name()?;
        let (mut folder, mut missing) = (PathBuf::new(), PathBuf::new());
        for component in absolute.parent()?.components() {
            match component {
                // What is not there is no link, so that its parent is that of its path.
                Component::ParentDir if missing.pop() => {}
                component if missing.as_os_str().is_empty() => {
                    let next = folder.join(component);
                    match next.is_dir() {
                        true => folder = next,
                        false => missing.push(component),
                    }
                }
                component => missing.push(component),
            }
        }
        let folder = FileId::of(&fs::metadata(folder).ok()?);
        Some(Self::Named(folder, missing.join(name)))
    }
}

/// Whether two paths lead to the same file, or would if it were there.
pub(super) fn is_same_place(one: &Path, other: &Path) -> bool {
    one == other || {
        let identities = Vec::from_iter(Identity::of_path(one));
        Identity::of_path(other).any(|identity| identities.contains(&identity))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashSet;
    use std::os::unix::fs::symlink;

    use nbd_testkit::{Random, cases};

    use super::*;

    /// A folder `a/b`, with links to it and out of it.
    pub(in crate::serve) fn folders() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        symlink("a/b", folder.path().join("to-b")).unwrap();
        symlink(folder.path(), folder.path().join("a/up")).unwrap();
        folder
    }

    /// Another spelling of a name in the first of these folders, as steps that lead nowhere else.
    pub(in crate::serve) fn spelling(random: &mut Random, folder: &Path, name: &str) -> PathBuf {
        let mut path = folder.to_owned();
        for _ in 0..random.below(4) {
            let steps = [".", "a/..", "a/up", "a/b/../..", "to-b/../..", "a/b/.././up"];
            path.push(steps[random.below(steps.len() as u64) as usize]);
        }
        path.join(name)
    }

    #[test]
    fn a_path_is_the_same_however_it_is_spelled_whether_or_not_a_file_is_there() {
        let folder = folders();
        let root = folder.path();
        fs::write(root.join("there"), "x").unwrap();
        symlink("new", root.join("link")).unwrap();
        fs::hard_link(root.join("there"), root.join("again")).unwrap();
        // Each of the last two is another path of what stands before it.
        let places = [("there", "again"), ("new", "link"), ("gone/x", "gone/./y/../x"), ("b", "b")];
        cases(300, |random| {
            let one = random.below(places.len() as u64) as usize;
            let other = random.below(places.len() as u64) as usize;
            let mut spelled = |(first, second)| {
                let name = if random.one_in(2) { first } else { second };
                spelling(random, root, name)
            };
            let paths = [spelled(places[one]), spelled(places[other])];
            assert_eq!(is_same_place(&paths[0], &paths[1]), one == other, "{paths:?}");
            let identities = Vec::from_iter(Identity::of_path(&paths[0]));
            assert_eq!(HashSet::<Identity>::from_iter(identities.clone()).len(), identities.len());
        });
        // The parent of a link's folder is that of the folder that it leads to.
        assert!(!is_same_place(&root.join("to-b/../x"), &root.join("x")));
        assert!(is_same_place(&root.join("to-b/../x"), &root.join("a/x")));
        assert!(!is_same_place(Path::new(""), Path::new("..")));
    }
}
