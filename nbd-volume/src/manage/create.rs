//! Making volumes.

use slatedb::WriteBatch;

use super::PATIENCE;
use super::nesting::check_alone;
use crate::database;
use crate::encryption;
use crate::fences::Fences;
use crate::layout::{DESCRIPTOR, Descriptor, SIZE_KEY, Size, is_block_size};
use crate::patience::within;
use crate::records::{encoded, hexadecimal, store_descriptor};
use crate::{Error, Location, Options};

/// What a new volume is to be. [`create`] refuses sizes that are out of range.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NewVolume {
    /// Bytes: from 1 to 2^63 - 1. Nothing is reserved.
    pub size: u64,
    /// Bytes of a block, a power of two from 4 KiB to 64 KiB, which stays as it is. A shorter write reads the rest of
    /// its block first; a larger block takes fewer entries, and has larger volumes read and written faster in
    /// sequence.
    pub block_size: u32,
    /// Whether its data is encrypted, with the [key](Location::with_key) of its location. Neither that nor the key can
    /// be changed later.
    pub encrypted: bool,
}

impl NewVolume {
    /// The block size unless another one is asked for: that of the file systems that volumes are made for, so that
    /// their writes need not read.
    pub const DEFAULT_BLOCK_SIZE: u32 = 4 << 10;

    /// A volume of that size with blocks of the default size.
    #[must_use]
    pub const fn of_size(size: u64) -> Self {
        Self { size, block_size: Self::DEFAULT_BLOCK_SIZE, encrypted: false }
    }

    /// The same with blocks of another size, in bytes: 4, 8, 16, 32 or 64 KiB.
    #[must_use]
    pub const fn with_block_size(self, block_size: u32) -> Self {
        Self { block_size, ..self }
    }

    /// The same, encrypted with the [key](Location::with_key) of the location in which it is made.
    #[must_use]
    pub const fn with_encryption(self) -> Self {
        Self { encrypted: true, ..self }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let Self { size, block_size, .. } = self;
        if *size == 0 {
            return Err(Error::Invalid(
                "a volume of 0 bytes can't be used: give it a size, such as 10G; it takes no space before it is written".into(),
            ));
        }
        if i64::try_from(*size).is_err() {
            return Err(Error::Invalid(format!(
                "{size} bytes are more than a disk can have, 2^63 - 1"
            )));
        }
        if !is_block_size(*block_size) {
            return Err(Error::Invalid(format!(
                "{block_size} is not a block size of volumes: give 4k, 8k, 16k, 32k or 64k"
            )));
        }
        Ok(())
    }
}

/// Makes a volume, which reads as zeroes. A local directory is made, too; a bucket has to be there.
///
/// Has to be awaited in a tokio runtime. Not cancel-safe: one that is dropped may leave a volume without a size, which
/// can be deleted.
///
/// # Errors
/// [`Error::Exists`] when there is a volume, or the beginning of one; [`Error::Nested`] when there is one above or below;
/// [`Error::Invalid`] when size or block size are out of range, or when it is to be encrypted by a location without a key;
/// [`Error::Refused`], [`Error::Store`] after a minute without an answer, or [`Error::Unconditional`] when the store can't
/// be used.
pub async fn create(location: &Location, volume: &NewVolume) -> Result<(), Error> {
    volume.check()?;
    let id = new_id()?;
    let encryption = match (volume.encrypted, location.key()) {
        (false, _) => None,
        (true, Some(key)) => Some(encryption::new(key, id.clone())),
        (true, None) => {
            return Err(Error::Invalid(format!(
                "there is no key to encrypt the volume at {location} with: name the file that holds it in \
                 NBD_VOLUME_KEY_FILE; openssl rand -hex 32 makes one"
            )));
        }
    };
    let descriptor = Descriptor::new(volume.block_size, id, encryption);
    store_new(location, &descriptor).await?;
    // A store that can't be relied on is found here rather than when there is data.
    match store_descriptor(location, &descriptor, PATIENCE).await {
        Err(Error::Exists { .. }) => (),
        Err(error) => return Err(error),
        Ok(()) => {
            use object_store::ObjectStoreExt;
            let _removed = location.store().delete(&location.object(DESCRIPTOR)).await;
            return Err(Error::Unconditional { url: location.url().to_owned() });
        }
    }
    let options = Options { object_cache: 1 << 20, ..Options::default() };
    let cipher = encryption::of(location, &descriptor)?;
    let made = async {
        let fences = Fences::of(&descriptor);
        let db = database::open(location, &options, None, cipher, fences).await?;
        let mut batch = WriteBatch::new();
        batch.put(SIZE_KEY, encoded(&Size { size: volume.size }));
        db.write(batch).await?;
        db.close().await
    };
    within(location, "make a volume at", PATIENCE, made).await
}

/// Stores what a new volume is.
pub(super) async fn store_new(location: &Location, descriptor: &Descriptor) -> Result<(), Error> {
    check_alone(location).await?;
    match store_descriptor(location, descriptor, PATIENCE).await {
        // It may be this one, if the reply to the first attempt was lost.
        Err(Error::Exists { url }) => match crate::records::descriptor(location, PATIENCE).await {
            Ok(there) if there.id == descriptor.id => Ok(()),
            _ => Err(Error::Exists { url }),
        },
        result => result,
    }
}

/// An identity that no other volume has.
pub(super) fn new_id() -> Result<String, Error> {
    let mut random = [0; 16];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::Invalid(format!("the system has no random numbers: {error}")))?;
    Ok(hexadecimal(&random))
}
