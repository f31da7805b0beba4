package paywarden

import (
	"container/heap"
	"math"
	"time"
)

const (
	firstPauseMS, longestPauseMS = 1000.0, 30_000.0
	// The service remembers a decision for 600 s. Beyond that, a repeated payment would be decided again.
	giveUpMS = 540_000.0
	// Of a payment that is asked about again.
	reconcileDeadline = time.Second
	// Between two of them: at most 50 a second.
	reconcileApart = 20 * time.Millisecond
)

// Ends of stand-ins.
const (
	Answered = "answered"
	Refused  = "refused"
	Expired  = "expired"
	Full     = "full"
)

// nextDueMS returns when to ask next, in milliseconds from the stand-in, and false to give up. asked is how often the
// payment was asked about since, and sinceMS when the last answer failed (0 at first).
func nextDueMS(asked int, sinceMS float64) (float64, bool) {
	dueMS := sinceMS + math.Min(firstPauseMS*math.Pow(2, float64(min(asked, 10))), longestPauseMS)
	return dueMS, dueMS <= giveUpMS
}

// waiting is a stand-in that waits to be asked about again.
type waiting struct {
	payment *Payment
	standIn *Decision
	// pinned is the host that the payment may have been sent to, or -1.
	pinned int
	begun  time.Time
	asked  int
	due    time.Time
}

type dueEntry struct {
	due       time.Time
	paymentID string
}

type dueHeap []dueEntry

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(a, b int) bool { return h[a].due.Before(h[b].due) }
func (h dueHeap) Swap(a, b int)      { h[a], h[b] = h[b], h[a] }
func (h *dueHeap) Push(entry any)    { *h = append(*h, entry.(dueEntry)) }
func (h *dueHeap) Pop() any {
	last := len(*h) - 1
	entry := (*h)[last]
	*h = (*h)[:last]
	return entry
}

// reconcileQueue has the waiting stand-ins by payment id. The client holds a lock.
type reconcileQueue struct {
	waitingMax int
	waiting    map[string]*waiting
	// due has when what is due. An entry whose time is not the payment's any more is skipped.
	due dueHeap
}

func newReconcileQueue(waitingMax int) *reconcileQueue {
	return &reconcileQueue{waitingMax: waitingMax, waiting: map[string]*waiting{}}
}

// put lets a stand-in wait, in the place of an earlier one of the payment. It returns false if there is no room.
func (q *reconcileQueue) put(payment *Payment, standIn *Decision, pinned int, now time.Time) bool {
	if one := q.waiting[payment.PaymentID]; one != nil {
		one.standIn = standIn
		if pinned >= 0 {
			one.pinned = pinned
		}
		return true
	}
	if len(q.waiting) >= q.waitingMax {
		return false
	}
	one := &waiting{payment: payment, standIn: standIn, pinned: pinned, begun: now}
	q.waiting[payment.PaymentID] = one
	q.plan(one, 0)
	return true
}

// end takes a payment out of the queue. It returns nil if it was not there.
func (q *reconcileQueue) end(paymentID string) *waiting {
	one := q.waiting[paymentID]
	delete(q.waiting, paymentID)
	return one
}

// next returns when the next payment is due, and false if none waits.
func (q *reconcileQueue) next() (time.Time, bool) {
	for len(q.due) > 0 {
		entry := q.due[0]
		if one := q.waiting[entry.paymentID]; one != nil && one.due.Equal(entry.due) {
			return entry.due, true
		}
		heap.Pop(&q.due)
	}
	return time.Time{}, false
}

// takeDue returns the payment that is due, which stays in the queue; nil if none is.
func (q *reconcileQueue) takeDue(now time.Time) *waiting {
	due, isThere := q.next()
	if !isThere || due.After(now) {
		return nil
	}
	one := q.waiting[heap.Pop(&q.due).(dueEntry).paymentID]
	one.asked++
	return one
}

// failed plans to ask again. It returns false if it is too late for that: the payment is out of the queue.
func (q *reconcileQueue) failed(one *waiting, sentTo int, now time.Time) bool {
	if q.waiting[one.payment.PaymentID] != one {
		// It has ended meanwhile, and its hook was called.
		return true
	}
	if one.pinned < 0 {
		one.pinned = sentTo
	}
	if q.plan(one, float64(now.Sub(one.begun))/float64(time.Millisecond)) {
		return true
	}
	delete(q.waiting, one.payment.PaymentID)
	return false
}

// drain returns what waits, and empties the queue.
func (q *reconcileQueue) drain() []*waiting {
	left := make([]*waiting, 0, len(q.waiting))
	for _, one := range q.waiting {
		left = append(left, one)
	}
	clear(q.waiting)
	q.due = nil
	return left
}

func (q *reconcileQueue) plan(one *waiting, sinceMS float64) bool {
	dueMS, isInTime := nextDueMS(one.asked, sinceMS)
	if !isInTime {
		return false
	}
	one.due = one.begun.Add(time.Duration(dueMS * float64(time.Millisecond)))
	heap.Push(&q.due, dueEntry{one.due, one.payment.PaymentID})
	return true
}
