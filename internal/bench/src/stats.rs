//! Medians and how far the rounds are apart.

/// The middle of the values, or of the two middle ones; `None` of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(values[values.len() / 2 - 1], upper))
}

/// Half of the way from the least to the greatest value, in parts of the median: how much a
/// difference must be to mean something.
pub fn spread(values: &[f64]) -> Option<f64> {
    let middle = median(values.iter().copied())?;
    let least = values.iter().copied().min_by(f64::total_cmp)?;
    let greatest = values.iter().copied().max_by(f64::total_cmp)?;
    Some((greatest - least) / 2.0 / middle)
}
