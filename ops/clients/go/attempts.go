package paywarden

import (
	"math"
	"regexp"
	"slices"
	"strconv"
	"time"
)

const (
	// A host that said that it cannot, or could not be reached, is asked again after this pause.
	retryPause = 5 * time.Millisecond
	// A retry begins only if this much of the deadline is left after the pause.
	retryLeftMin = 5 * time.Millisecond
	attemptsMax  = 2
	// How long new payments avoid a host that refused a connection or said that it closes one.
	avoidFor      = time.Second
	deadlineMSMax = 600_000
)

// What an attempt met, besides a status, when it is no cause of a stand-in.
const refused = "refused"

var traceparentForm = regexp.MustCompile(`\A00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\z`)

// deadlineHeader returns the value of x-deadline-ms: what is left, in whole milliseconds.
func deadlineHeader(leftMS float64) int {
	return int(min(max(math.Floor(leftMS+0.5), 1), deadlineMSMax))
}

type header struct{ name, value string }

// headersOf returns the headers of a request, but for host, length and user agent. Empty texts are left out.
func headersOf(deadlineMS int, token, route, traceparent string) []header {
	headers := make([]header, 0, 6)
	headers = append(headers, header{"content-type", "application/json"})
	headers = append(headers, header{"x-deadline-ms", strconv.Itoa(deadlineMS)})
	if token != "" {
		headers = append(headers, header{"authorization", "Bearer " + token})
	}
	if route != "" {
		headers = append(headers, header{routeHeader, route})
	}
	if traceparent != "" && traceparentForm.MatchString(traceparent) {
		headers = append(headers, header{"traceparent", traceparent})
	}
	return headers
}

// callPlan has the attempts of one call: which host it asks, and whether it asks once more. A request that was sent may
// have been decided, so its retry meets the same host, which knows the payment's id.
type callPlan struct {
	order    []int
	attempts int
	host     int
	// sentTo is the host that the request may have reached, or -1.
	sentTo int
}

// newPlan makes a plan. pinned is the host that this payment was sent to before, or -1.
func newPlan(order []int, avoided []int, pinned int) callPlan {
	plan := callPlan{order: order, attempts: 1, host: order[0], sentTo: pinned}
	if pinned >= 0 {
		plan.host = pinned
		return plan
	}
	for _, place := range order {
		if !slices.Contains(avoided, place) {
			plan.host = place
			break
		}
	}
	return plan
}

func (p *callPlan) sent() { p.sentTo = p.host }

// retry returns the pause before a second attempt, and whether there is one. met is refused, Broken or "503".
func (p *callPlan) retry(met string, left time.Duration) (time.Duration, bool) {
	if p.attempts >= attemptsMax || (met != refused && met != Broken && met != "503") {
		return 0, false
	}
	host, pause := p.host, retryPause
	if met == Broken {
		pause = 0
	} else if met == refused && p.sentTo < 0 && len(p.order) > 1 {
		host, pause = p.order[(slices.Index(p.order, host)+1)%len(p.order)], 0
	}
	if left-pause < retryLeftMin {
		return 0, false
	}
	p.attempts++
	p.host = host
	return pause, true
}

// causeOf returns the cause of a stand-in by what the last attempt met, other than a status.
func causeOf(met string) string {
	if met == refused {
		return Unreachable
	}
	return met
}
