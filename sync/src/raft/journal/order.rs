//! In which order the segments of a journal follow each other, where it ends, and whether anything is missing. Pure.
//!
//! A batch lies in one segment and the next is written when it is on disk. So what a power failure leaves is everything up
//! to some batch and, behind it in the last segment, any sectors of one more: a torn tail, which was never acknowledged.
//! Whatever else is missing was there before, and the journal is damaged.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};

use super::{SEGMENT, sector::Head};

/// No journal gets so far: what says it stands behind this is not where it was written.
const LAST: u64 = u64::MAX >> 1;

/// The order that was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Order {
    /// Number of the first segment.
    pub(super) first: u64,
    /// Where in the file the segments are, in order.
    pub(super) places: VecDeque<usize>,
    /// Places in the file without a segment.
    pub(super) unused: VecDeque<usize>,
    /// Positions of whole batches, in order.
    pub(super) batches: Vec<Range<u64>>,
    /// Positions of sectors of a batch that is not whole.
    pub(super) torn: Vec<u64>,
}

impl Order {
    /// Finds the order of segments whose sectors have these heads; `None` is a sector that was never written.
    pub(super) fn of(file: &[Vec<Option<Head>>]) -> Result<Self, String> {
        let mut numbers: BTreeMap<u64, usize> = BTreeMap::new();
        let mut order = Self::default();
        for (place, sectors) in file.iter().enumerate() {
            let mut newest = None;
            for (at, head) in (0..).zip(sectors) {
                let Some(head) = head else { continue };
                if head.position % SEGMENT != at || head.position > LAST {
                    return Err(format!("sector {} stands in another's place", head.position));
                }
                newest = newest.max(Some(head.position / SEGMENT));
            }
            match newest {
                None => order.unused.push_back(place),
                Some(number) if numbers.insert(number, place).is_some() => {
                    return Err(format!("segment {number} is there twice"));
                }
                Some(_) => {}
            }
        }
        let Some((last, _)) = numbers.last_key_value() else { return Ok(order) };
        let last = *last;
        order.first = last + 1 - numbers.len() as u64;
        for (expected, (number, place)) in (order.first..).zip(numbers) {
            if number != expected {
                return Err(format!("segment {expected} is missing"));
            }
            order.walk(number, &file[place], number == last)?;
            order.places.push_back(place);
        }
        Ok(order)
    }

    /// Finds the batches of a segment. Sectors of an earlier number are what it was written over.
    fn walk(&mut self, number: u64, sectors: &[Option<Head>], is_last: bool) -> Result<(), String> {
        let (begin, end) = (number * SEGMENT, (number + 1) * SEGMENT);
        let at = |position: u64| {
            let index = usize::try_from(position - begin).ok()?;
            (*sectors.get(index)?).filter(|head| head.position == position)
        };
        let mut next = begin;
        while let Some(head) = at(next).filter(|head| head.batch == next && head.sectors > 0) {
            let batch = next..next + u64::from(head.sectors);
            let is_whole = batch.end <= end
                && batch.clone().all(|p| at(p).is_some_and(|h| (h.batch, h.sectors) == (head.batch, head.sectors)));
            if !is_whole {
                break;
            }
            next = batch.end;
            self.batches.push(batch);
        }
        for head in (next..end).filter_map(at) {
            if !is_last || head.batch != next {
                return Err(format!("what stood at sector {next} is missing"));
            }
            self.torn.push(head.position);
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a segment may have one batch")]
mod tests {
    use super::*;

    /// Sectors of one segment: batches of these positions.
    fn segment(batches: &[Range<u64>]) -> Vec<Option<Head>> {
        let mut sectors = vec![None; SEGMENT as usize];
        for batch in batches {
            for position in batch.clone() {
                let sectors_of = (batch.end - batch.start) as u32;
                let head = Head { position, batch: batch.start, sectors: sectors_of, used: 1 };
                sectors[(position % SEGMENT) as usize] = Some(head);
            }
        }
        sectors
    }

    const S: u64 = SEGMENT;

    #[test]
    fn a_ring_is_put_in_order() {
        let blank = segment(&[]);
        assert_eq!(Order::of(&[]).unwrap(), Order::default());
        assert_eq!(Order::of(std::slice::from_ref(&blank)).unwrap().unused, [0]);
        let mut over = segment(&[3 * S..3 * S + 2, 3 * S + 2..3 * S + 9]);
        // Segment 6 begins over what segment 3 was.
        over[..2].clone_from_slice(&segment(&[6 * S..6 * S + 2])[..2]);
        let order =
            Order::of(&[segment(&[5 * S..5 * S + 1]), over, blank, segment(&[4 * S..4 * S + 1, 4 * S + 1..5 * S])]);
        let order = order.unwrap();
        assert_eq!((order.first, order.places, order.unused), (4, [3, 0, 1].into(), [2].into()));
        assert_eq!(order.batches, [4 * S..4 * S + 1, 4 * S + 1..5 * S, 5 * S..5 * S + 1, 6 * S..6 * S + 2]);
        assert!(order.torn.is_empty());
    }

    #[test]
    fn any_sectors_of_the_last_batch_may_be_missing() {
        let whole = segment(&[0..2, 2..5]);
        for lost in 0..8_u32 {
            let mut torn = whole.clone();
            for sector in (0..3).filter(|sector| lost & (1 << sector) != 0) {
                torn[2 + sector as usize] = None;
            }
            let order = Order::of(&[torn]).unwrap();
            let left: Vec<u64> = (0..3).filter(|sector| lost & (1 << sector) == 0).map(|sector| 2 + sector).collect();
            if lost == 0 {
                assert_eq!((order.batches, order.torn), (vec![0..2, 2..5], vec![]));
            } else {
                assert_eq!((order.batches, order.torn), (vec![0..2], left), "{lost:b}");
            }
        }
    }

    #[test]
    fn what_is_missing_elsewhere_is_damage() {
        for lost in 0..5 {
            let mut bad = segment(&[0..2, 2..5, 5..6]);
            bad[lost] = None;
            assert!(Order::of(&[bad]).unwrap_err().contains("is missing"), "{lost}");
        }
        let torn = |number: u64| {
            let mut sectors = segment(&[number * S..number * S + 3]);
            sectors[1] = None;
            sectors
        };
        assert!(Order::of(&[torn(0), segment(&[S..S + 1])]).is_err(), "only the last segment may be torn");
        assert!(Order::of(&[segment(&[0..1]), torn(1)]).is_ok());
        assert!(Order::of(&[segment(&[0..1]), segment(&[2 * S..2 * S + 1])]).is_err(), "a segment is missing");
        assert!(Order::of(&[segment(&[0..1]), segment(&[0..1])]).is_err(), "one is there twice");
        let mut moved = segment(&[0..1]);
        moved.swap(0, 1);
        assert!(Order::of(&[moved]).is_err());
        assert!(Order::of(&[segment(&[u64::MAX - 1..u64::MAX])]).is_err(), "no journal is so long");
    }
}
