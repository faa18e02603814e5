use super::*;

/// Plays frames that lie in a tap, `more` of them arriving after each batch; those passed on each time before the tap
/// counted as empty.
fn bursts(pace: &mut Pace, mut waiting: usize, more: &[usize]) -> Vec<usize> {
    let (mut bursts, mut passed) = (Vec::new(), 0);
    let mut more = more.iter();
    loop {
        let reads = pace.window();
        let got = reads.min(waiting);
        waiting -= got;
        passed += got;
        let again = pace.took(reads, got);
        let arrived = more.next();
        waiting += arrived.copied().unwrap_or(0);
        if !again {
            // Nothing new, no call.
            bursts.extend((passed > 0).then_some(passed));
            passed = 0;
            if arrived.is_none() && waiting == 0 {
                return bursts;
            }
        }
    }
}

#[test]
fn a_lone_frame_is_passed_on_at_once() {
    let mut pace = Pace::new();
    assert!(pace.is_lone());
    assert_eq!(bursts(&mut pace, 1, &[]), [1]);
    assert!(pace.is_lone(), "and so is the next");
}

#[test]
fn reads_grow_to_a_batch_and_shrink_to_what_there_was() {
    let mut pace = Pace::new();
    let windows: Vec<usize> = (0..10)
        .map(|_| {
            assert!(pace.took(pace.window(), pace.window()));
            pace.window()
        })
        .collect();
    assert_eq!(windows, [1, 1, 1, 2, 4, 8, 16, 32, 64, 64]);
    assert!(pace.took(64, 20), "a burst: one more look");
    assert_eq!(pace.window(), 20);
    assert!(!pace.took(20, 0));
    assert_eq!(pace.window(), 1);
}

#[test]
fn a_few_frames_are_not_dense() {
    let mut pace = Pace::new();
    // 1 + 1 + 1 + 1 + 2 + 4, then none of 8.
    assert_eq!(bursts(&mut pace, 10, &[]), [10]);
    assert_eq!(bursts(&mut pace, 1, &[0, 0, 1, 0, 0, 1]), [1, 1, 1]);
    assert!(pace.is_lone(), "each is passed on at once");
}

#[test]
fn dense_frames_are_waited_for_a_bounded_number_of_looks() {
    let mut pace = Pace::new();
    bursts(&mut pace, 200, &[]);
    assert!(!pace.is_lone(), "more are to be expected");
    // One at a time, each a few looks after the last: without patience a call each.
    assert_eq!(bursts(&mut pace, 1, &[0, 0, 1, 0, 0, 0, 1, 0, 1]), [4]);
    // Nothing at all is waited for less each time.
    let looks: Vec<i32> =
        (0..5).map(|_| (1..).find(|_| !pace.took(pace.window(), 0)).unwrap_or_default()).collect();
    assert_eq!(looks, [5, 3, 2, 1, 1]);
    assert!(pace.is_lone());
}
