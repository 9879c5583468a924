//! Size constraints as people write them.

use nbd_engine::export::BlockSize;

use crate::quantity;

/// `MIN[:PREFERRED[:MAX]]`, each a size. What is left out is the default, or as much as the others need.
pub(super) fn parse(text: &str) -> Result<BlockSize, String> {
    let default = BlockSize::DEFAULT;
    let mut parts = text.split(':');
    let mut next = |least: u32| match parts.next() {
        None => Ok(least),
        Some(part) => u32::try_from(quantity::size(part)?)
            .map_err(|_| format!("'{part}' is more than any size constraint can be")),
    };
    let minimum = next(default.minimum())?;
    let preferred = next(default.preferred().max(minimum))?;
    let maximum = next(default.maximum_payload().max(preferred))?;
    if parts.next().is_some() {
        return Err("give at most three sizes: the smallest, the preferred, the largest".into());
    }
    BlockSize::new(minimum, preferred, maximum).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_the_default_or_what_the_others_need() {
        let sizes = |text| {
            let sizes = parse(text).unwrap();
            (sizes.minimum(), sizes.preferred(), sizes.maximum_payload())
        };
        assert_eq!(sizes("512"), (512, 4096, 32 << 20));
        assert_eq!(sizes("64k"), (65536, 65536, 32 << 20));
        assert_eq!(sizes("4k:64k"), (4096, 65536, 32 << 20));
        assert_eq!(sizes("1:512:1M"), (1, 512, 1 << 20));
    }

    #[test]
    fn what_breaks_the_rules_is_refused() {
        for text in ["", "0", "3", "128k", "4k:512", "1:512:256", "1:2:3:4", "8G", "512:x"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
