//! Encryption at rest, by AES-256-GCM of the crate `ring`.
//!
//! SlateDB hands over each block of a table or of its log, each index and each filter, before it is stored (its
//! `BlockTransformer`), and nothing else: what a manifest and the end of a table say stays in the clear. It does not say
//! which table a block is for, so that this can't be authenticated either; but each block holds its own keys, which are the
//! numbers of the volume's blocks.
//!
//! The volume's key encrypts nothing by itself. HKDF-SHA-256 makes a key for each opening of the volume of it and of a
//! random salt, which stands before each block that was encrypted with it. Nonces are random: a key that is used for
//! [`MAX_BLOCKS`] blocks at most has two with the same nonce with a probability of less than 2^-37.
//!
//! ```text
//! salt (32 bytes)  nonce (12)  ciphertext  tag (16)        authenticated besides: CONTEXT, the family of the volume
//! ```

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{self, HKDF_SHA256};
use ring::rand::{SecureRandom, SystemRandom};
use slatedb::BlockTransformer;

use crate::layout::{Descriptor, Encryption};
use crate::{Error, Key, Location};

/// The name of what is described above.
pub(crate) const CIPHER: &str = "aes-256-gcm";

const SALT_LENGTH: usize = 32;
const TAG_LENGTH: usize = 16;

/// What is in front of the ciphertext.
const HEADER_LENGTH: usize = SALT_LENGTH + NONCE_LEN;

/// What ciphertexts are bound to, besides the family.
const CONTEXT: &[u8] = b"nbd-volume block 1";

/// Blocks that are encrypted with one key.
const MAX_BLOCKS: u32 = 1 << 30;

/// Keys for reading that are kept.
const MAX_KEPT: usize = 4096;

type Salt = [u8; SALT_LENGTH];

/// Encrypts and decrypts what SlateDB stores.
pub(crate) struct Cipher {
    key: Key,
    /// What ciphertexts are bound to: the volume and its clones, which share data.
    context: Vec<u8>,
    random: SystemRandom,
    writing: Mutex<Option<Writing>>,
    reading: Mutex<HashMap<Salt, Arc<LessSafeKey>>>,
}

/// The key that is used for writing now.
struct Writing {
    salt: Salt,
    key: Arc<LessSafeKey>,
    /// Blocks that it may still encrypt.
    left: u32,
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher")
    }
}

/// How a new volume is encrypted with a key.
pub(crate) fn new(key: &Key, family: String) -> Encryption {
    let check = check_value(key, &family);
    Encryption { cipher: CIPHER.to_owned(), family, check }
}

/// The cipher of a volume, if it is encrypted.
///
/// # Errors
/// When there is no key, or another one than that of the volume.
pub(crate) fn of(
    location: &Location,
    descriptor: &Descriptor,
) -> Result<Option<Arc<dyn BlockTransformer>>, Error> {
    let url = || location.url().to_owned();
    let Some(encryption) = &descriptor.encryption else {
        if location.key().is_some() {
            tracing::warn!(volume = %location, "the volume is not encrypted: its key is not used");
        }
        return Ok(None);
    };
    if encryption.cipher != CIPHER {
        let what = format!("it is encrypted by {}, which is unknown", encryption.cipher);
        return Err(Error::Damaged { url: url(), what });
    }
    let Some(key) = location.key() else { return Err(Error::NoKey { url: url() }) };
    if check_value(key, &encryption.family) != encryption.check {
        return Err(Error::WrongKey { url: url() });
    }
    Ok(Some(Arc::new(Cipher::new(key.clone(), &encryption.family))))
}

/// What tells whether a key is that of a volume: of no use to find out the key, which is random.
fn check_value(key: &Key, family: &str) -> String {
    let mut check = [0; 16];
    let derived = hkdf::Salt::new(HKDF_SHA256, family.as_bytes()).extract(key.bytes());
    let info = [b"nbd-volume check 1".as_slice()];
    let expanded = derived.expand(&info, Bytes16);
    // Fails for another length than that which was asked for.
    let _filled = expanded.and_then(|expanded| expanded.fill(&mut check));
    crate::records::hexadecimal(&check)
}

/// The length of a check value.
struct Bytes16;

impl hkdf::KeyType for Bytes16 {
    fn len(&self) -> usize {
        16
    }
}

impl Cipher {
    fn new(key: Key, family: &str) -> Self {
        let mut context = CONTEXT.to_vec();
        context.extend_from_slice(family.as_bytes());
        Self {
            key,
            context,
            random: SystemRandom::new(),
            writing: Mutex::new(None),
            reading: Mutex::default(),
        }
    }

    fn derived(&self, salt: &Salt) -> Option<Arc<LessSafeKey>> {
        let derived = hkdf::Salt::new(HKDF_SHA256, salt).extract(self.key.bytes());
        let info = [self.context.as_slice()];
        let expanded = derived.expand(&info, &AES_256_GCM).ok()?;
        Some(Arc::new(LessSafeKey::new(UnboundKey::from(expanded))))
    }

    /// The key for the next block that is written.
    fn for_writing(&self) -> Option<(Salt, Arc<LessSafeKey>)> {
        let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if writing.as_ref().is_none_or(|writing| writing.left == 0) {
            let mut salt = [0; SALT_LENGTH];
            self.random.fill(&mut salt).ok()?;
            *writing = Some(Writing { salt, key: self.derived(&salt)?, left: MAX_BLOCKS });
        }
        let writing = writing.as_mut()?;
        writing.left -= 1;
        Some((writing.salt, Arc::clone(&writing.key)))
    }

    fn for_reading(&self, salt: &Salt) -> Option<Arc<LessSafeKey>> {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = reading.get(salt) {
            return Some(Arc::clone(key));
        }
        if reading.len() >= MAX_KEPT {
            reading.clear();
        }
        let key = self.derived(salt)?;
        reading.insert(*salt, Arc::clone(&key));
        Some(key)
    }

    fn sealed(&self, data: &[u8]) -> Option<Vec<u8>> {
        let (salt, key) = self.for_writing()?;
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        let mut block = Vec::with_capacity(HEADER_LENGTH + data.len() + TAG_LENGTH);
        block.extend_from_slice(&salt);
        block.extend_from_slice(&nonce);
        block.extend_from_slice(data);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let (aad, body) = (Aad::from(&self.context), &mut block[HEADER_LENGTH..]);
        let tag = key.seal_in_place_separate_tag(nonce, aad, body).ok()?;
        block.extend_from_slice(tag.as_ref());
        Some(block)
    }

    fn opened(&self, block: &[u8]) -> Option<Vec<u8>> {
        let (salt, rest) = block.split_first_chunk::<SALT_LENGTH>()?;
        let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>()?;
        let key = self.for_reading(salt)?;
        let mut body = body.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = key.open_in_place(nonce, Aad::from(&self.context), &mut body).ok()?.len();
        body.truncate(length);
        Some(body)
    }
}

#[async_trait]
impl BlockTransformer for Cipher {
    async fn encode(&self, data: Bytes) -> Result<Bytes, slatedb::Error> {
        let sealed = self.sealed(&data).map(Bytes::from);
        sealed.ok_or_else(|| slatedb::Error::internal("a block could not be encrypted".to_owned()))
    }

    async fn decode(&self, data: Bytes) -> Result<Bytes, slatedb::Error> {
        let opened = self.opened(&data).map(Bytes::from);
        opened.ok_or_else(|| slatedb::Error::data("a block is not authentic".to_owned()))
    }

    fn encoded_overhead(&self) -> usize {
        HEADER_LENGTH + TAG_LENGTH
    }
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;

    fn cipher(key: u8, family: &str) -> Cipher {
        Cipher::new(Key::new([key; 32]), family)
    }

    #[test]
    fn what_was_encrypted_is_decrypted_by_the_same_key_and_family_alone() {
        cases(50, |random| {
            let data: Vec<u8> = (0..random.below(5000)).map(|i| (i % 251) as u8).collect();
            let block = cipher(1, "a").sealed(&data).unwrap();
            assert_eq!(block.len(), data.len() + HEADER_LENGTH + TAG_LENGTH);
            assert_eq!(cipher(1, "a").opened(&block).unwrap(), data);
            assert!(cipher(2, "a").opened(&block).is_none());
            assert!(cipher(1, "b").opened(&block).is_none());
            // Neither is one that was changed anywhere, or cut.
            let mut changed = block.clone();
            changed[random.below(block.len() as u64) as usize] ^= 1 << random.below(8);
            assert!(cipher(1, "a").opened(&changed).is_none());
            let cut = random.below(block.len() as u64) as usize;
            assert!(cipher(1, "a").opened(&block[..cut]).is_none());
        });
    }

    #[test]
    fn no_two_blocks_have_one_nonce_and_no_two_openings_one_salt() {
        let (one, other) = (cipher(1, "a"), cipher(1, "a"));
        let blocks: Vec<Vec<u8>> = (0..100).map(|_| one.sealed(b"the same").unwrap()).collect();
        let mut nonces: Vec<&[u8]> =
            blocks.iter().map(|block| &block[SALT_LENGTH..HEADER_LENGTH]).collect();
        nonces.sort_unstable();
        nonces.dedup();
        assert_eq!(nonces.len(), 100);
        let salt = |block: &[u8]| block[..SALT_LENGTH].to_vec();
        assert_eq!(salt(&blocks[0]), salt(&blocks[99]));
        assert_ne!(salt(&blocks[0]), salt(&other.sealed(b"the same").unwrap()));
        // When a key has done its share there is another one.
        one.writing.lock().unwrap().as_mut().unwrap().left = 0;
        assert_ne!(salt(&one.sealed(b"the same").unwrap()), salt(&blocks[0]));
        assert_eq!(one.opened(&blocks[0]).unwrap(), b"the same");
    }
}
