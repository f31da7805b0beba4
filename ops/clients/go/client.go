// Package paywarden is the client of Paywarden, the fraud scoring service. ops/clients/SPECIFICATION.md says what it
// does, rule by rule.
//
//	client, err := paywarden.New(paywarden.Settings{
//		URLs: []string{"https://paywarden:8443"}, Token: key, RouteKey: routeKey,
//	}, paywarden.Hooks{})
//	decision, err := client.Score(ctx, &paywarden.Payment{
//		PaymentID: "p-1", EventTimeMS: now, CardID: "card-000001", MerchantID: "merchant-0001",
//		AmountMinor: 4999, Currency: "EUR",
//	})
//	decision.Action  // "approve", "review" or "decline"
//	decision.StandIn // true if the service did not answer in time
package paywarden

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Version is the client's.
const Version = "1.0.0"

const (
	operationScore     = "score"
	operationShadow    = "shadow"
	operationReconcile = "reconcile"
	// Names are resolved at most ten times a second, however many connections fail.
	resolveApart = 100 * time.Millisecond
	// A resolver that does not answer is asked again.
	resolveTimeout = 5 * time.Second
)

// Client asks the service for decisions. Any number of goroutines may call it.
type Client struct {
	settings Settings
	hooks    Hooks
	targets  []target
	hosts    []*hostConnections
	// begun is where the clock of stand-ins begins.
	begun    time.Time
	isClosed atomic.Bool
	// avoidedUntil has, for each host, nanoseconds since begun.
	avoidedUntil []atomic.Int64

	lock          sync.Mutex
	standIn       *standIn
	queue         *reconcileQueue
	isReconciling bool
	// queued is how many payments are in the queue, to be read without the lock.
	queued  atomic.Int64
	shadows atomic.Int64

	ending       context.Context
	end          context.CancelFunc
	wakeResolver chan struct{}
	background   sync.WaitGroup
}

// call is one call, from its begin to its end.
type call struct {
	operation   string
	payment     *Payment
	body        []byte
	plan        callPlan
	route       string
	traceparent string
	began       time.Time
	deadline    time.Time
}

// New makes a client. The error is a *WrongSettings. Close the client when it is not needed any more.
func New(settings Settings, hooks Hooks) (*Client, error) {
	settings, targets, wrong := settings.checked()
	if wrong != nil {
		return nil, wrong
	}
	config, wrong := settings.tlsConfig()
	if wrong != nil {
		return nil, wrong
	}
	client := &Client{
		settings: settings, hooks: hooks, targets: targets, begun: time.Now(),
		avoidedUntil: make([]atomic.Int64, len(targets)),
		standIn:      newStandIn(settings.Policy, settings.CardsMax), queue: newReconcileQueue(settings.QueueMax),
		wakeResolver: make(chan struct{}, 1),
	}
	client.ending, client.end = context.WithCancel(context.Background())
	var named []*hostConnections
	for _, one := range targets {
		host := newHostConnections(one, &settings, config)
		client.hosts = append(client.hosts, host)
		if host.isNamed() {
			named = append(named, host)
		}
	}
	if len(named) > 0 {
		client.background.Add(1)
		go client.resolve(named)
	}
	return client, nil
}

// Options are of one call. A value of zero is the default.
type Options struct {
	// Deadline is in place of the settings' one.
	Deadline time.Duration
	// Traceparent is passed on if it has W3C's form of version 00.
	Traceparent string
}

// Score returns the service's decision, or a stand-in, by the deadline. The error is a *WrongRequest. A context that
// ends earlier ends the call.
func (c *Client) Score(ctx context.Context, payment *Payment) (*Decision, error) {
	return c.ScoreWith(ctx, payment, Options{})
}

// ScoreWith is Score with options.
func (c *Client) ScoreWith(ctx context.Context, payment *Payment, options Options) (*Decision, error) {
	one, wrong := c.begin(payment, options, operationScore)
	if wrong != nil {
		return nil, wrong
	}
	if until, has := ctx.Deadline(); has && until.Before(one.deadline) {
		one.deadline = until
	}
	decision, cause, wrong := c.endOf(ctx, one)
	if wrong != nil {
		c.endWaiting(payment.PaymentID, nil, Refused)
		c.count(one, Refused)
		return nil, wrong
	}
	return c.finish(one, decision, cause), nil
}

// Shadow returns own at once, and asks the service in the background: OnShadow gets both. It never panics.
func Shadow[Own any](c *Client, payment *Payment, own Own) Own {
	if c.isClosed.Load() {
		c.shadowed(own, nil, nil, Closed)
		return own
	}
	if c.shadows.Add(1) > int64(c.settings.ShadowMax) {
		c.shadows.Add(-1)
		c.shadowed(own, nil, nil, Busy)
		return own
	}
	c.lock.Lock()
	isClosed := c.isClosed.Load()
	if !isClosed {
		c.background.Add(1)
	}
	c.lock.Unlock()
	if isClosed {
		c.shadows.Add(-1)
		c.shadowed(own, nil, nil, Closed)
		return own
	}
	deadline := time.Now().Add(c.settings.Deadline)
	// The caller may change the payment meanwhile.
	kept := *payment
	go func() {
		defer c.background.Done()
		one, wrong := c.begin(&kept, Options{}, operationShadow)
		var decision *Decision
		cause := Refused
		if wrong == nil {
			one.deadline = deadline
			decision, cause, wrong = c.endOf(c.ending, one)
			if wrong != nil {
				cause = Refused
			} else if decision == nil && c.isClosed.Load() {
				cause = Closed
			}
		}
		c.shadows.Add(-1)
		c.shadowed(own, one, decision, cause)
	}()
	return own
}

// WaitingCount returns how many stand-ins wait to be asked about again.
func (c *Client) WaitingCount() int { return int(c.queued.Load()) }

// Close closes the connections; OnReconciled gets what waits. Calls from now on are stand-ins.
func (c *Client) Close() {
	c.lock.Lock()
	if c.isClosed.Swap(true) {
		c.lock.Unlock()
		return
	}
	left := c.queue.drain()
	c.queued.Store(0)
	c.lock.Unlock()
	for _, one := range left {
		c.reconciled(one.standIn, nil, Closed)
	}
	c.end()
	c.background.Wait()
	for _, host := range c.hosts {
		host.close()
	}
}

// A call

func (c *Client) begin(payment *Payment, options Options, operation string) (*call, *WrongRequest) {
	began := time.Now()
	deadline := options.Deadline
	if deadline == 0 {
		deadline = c.settings.Deadline
	}
	if deadline < time.Millisecond || deadline > deadlineMSMax*time.Millisecond {
		return nil, notSent("deadline_ms", "wanted 1 to 600000")
	}
	body, wrong := payment.body()
	if wrong != nil {
		return nil, wrong
	}
	one := &call{
		operation: operation, payment: payment, body: body, traceparent: options.Traceparent, began: began,
		deadline: began.Add(deadline),
	}
	if c.settings.RouteKey != nil {
		one.route = RouteOf(c.settings.RouteKey, payment.CardID)
	}
	order, pinned := []int{0}, -1
	var avoided []int
	if len(c.targets) > 1 {
		key := one.route
		if key == "" {
			key = payment.CardID
		}
		order = hostOrder(key, c.settings.URLs)
		now := int64(began.Sub(c.begun))
		for place := range c.avoidedUntil {
			if c.avoidedUntil[place].Load() > now {
				avoided = append(avoided, place)
			}
		}
		if c.queued.Load() > 0 {
			c.lock.Lock()
			if waits := c.queue.waiting[payment.PaymentID]; waits != nil {
				pinned = waits.pinned
			}
			c.lock.Unlock()
		}
	}
	one.plan = newPlan(order, avoided, pinned)
	return one, nil
}

// endOf returns how a call ends: a decision, a cause, or the refusal of the request.
func (c *Client) endOf(ctx context.Context, one *call) (*Decision, string, *WrongRequest) {
	for {
		met, status, body := c.attempt(ctx, one)
		retried := met
		if status == 503 {
			retried = "503"
		}
		if one.operation != operationReconcile && !c.isClosed.Load() {
			if pause, again := one.plan.retry(retried, time.Until(one.deadline)); again {
				if pause > 0 {
					sleep(ctx, pause)
				}
				continue
			}
		}
		if status == 0 {
			return nil, causeOf(met), nil
		}
		return readAnswer(one.payment.PaymentID, status, body)
	}
}

// attempt returns what the attempt met, or the status and the body of the answer.
func (c *Client) attempt(ctx context.Context, one *call) (string, int, []byte) {
	if c.isClosed.Load() {
		return Closed, 0, nil
	}
	place := one.plan.host
	host := c.hosts[place]
	connected, err := host.take(ctx, one.deadline, one.plan.attempts > 1)
	switch err {
	case nil:
	case errNoConnection:
		c.avoid(place)
		select {
		case c.wakeResolver <- struct{}{}:
		default:
		}
		return refused, 0, nil
	case errBusy:
		return Busy, 0, nil
	default:
		return Late, 0, nil
	}
	request, isRight := c.request(one)
	if !isRight {
		host.drop(connected)
		return Failed, 0, nil
	}
	one.plan.sent()
	stop := func() bool { return true }
	if ctx.Done() != nil {
		stop = context.AfterFunc(ctx, func() { connected.SetDeadline(time.Unix(1, 0)) })
	}
	answer, err := connected.exchange(request, one.deadline)
	// A connection whose deadline the context may still set is not used again.
	isMine := stop()
	if err != nil {
		host.drop(connected)
		switch err {
		case errLate:
			return Late, 0, nil
		case errNoAnswer:
			return Failed, 0, nil
		}
		return Broken, 0, nil
	}
	if answer.saysClose {
		c.avoid(place)
	}
	if answer.keeps && isMine {
		host.giveBack(connected)
	} else {
		host.drop(connected)
	}
	return "", answer.status, answer.body
}

func (c *Client) request(one *call) ([]byte, bool) {
	token := c.settings.Token
	if c.settings.TokenSource != nil {
		if token = c.settings.TokenSource(); !isToken(token) {
			return nil, false
		}
	}
	leftMS := float64(time.Until(one.deadline)) / float64(time.Millisecond)
	headers := headersOf(deadlineHeader(leftMS), token, one.route, one.traceparent)
	headers = append(headers, header{"user-agent", "paywarden-client-go/" + Version})
	to := &c.targets[one.plan.host]
	return requestBytes(to.path, to.authority, headers, one.body), true
}

func (c *Client) avoid(place int) {
	c.avoidedUntil[place].Store(int64(time.Since(c.begun) + avoidFor))
}

// finish returns what the caller gets: the decision, or a stand-in, which waits in the queue from now on.
func (c *Client) finish(one *call, decision *Decision, cause string) *Decision {
	if decision != nil {
		if c.queued.Load() > 0 {
			c.endWaiting(one.payment.PaymentID, decision, Answered)
		}
		c.count(one, Answered)
		return decision
	}
	now := time.Now()
	c.lock.Lock()
	decision = c.standIn.decide(one.payment, cause, float64(now.Sub(c.begun))/float64(time.Millisecond))
	isClosed := c.isClosed.Load()
	// The caller may use the payment for another one.
	kept := *one.payment
	waits := !isClosed && c.queue.put(&kept, decision, one.plan.sentTo, now)
	c.queued.Store(int64(len(c.queue.waiting)))
	if waits && !c.isReconciling {
		c.isReconciling = true
		c.background.Add(1)
		go c.reconcile()
	}
	c.lock.Unlock()
	if !waits {
		end := Full
		if isClosed {
			end = Closed
		}
		c.reconciled(decision, nil, end)
	}
	c.count(one, cause)
	return decision
}

// In the background

func (c *Client) reconcile() {
	defer c.background.Done()
	for !c.isClosed.Load() {
		c.lock.Lock()
		one := c.queue.takeDue(time.Now())
		due, isDue := c.queue.next()
		c.lock.Unlock()
		if one == nil {
			// A stand-in that comes meanwhile is due in a second at the earliest.
			pause := time.Second
			if isDue {
				pause = min(pause, max(time.Until(due), 0))
			}
			sleep(c.ending, pause)
			continue
		}
		c.askAgain(one)
		sleep(c.ending, reconcileApart)
	}
}

func (c *Client) askAgain(one *waiting) {
	asked, wrong := c.begin(one.payment, Options{Deadline: reconcileDeadline}, operationReconcile)
	if wrong != nil {
		c.endWaiting(one.payment.PaymentID, nil, Refused)
		return
	}
	decision, cause, wrong := c.endOf(c.ending, asked)
	switch {
	case wrong != nil:
		c.endWaiting(one.payment.PaymentID, nil, Refused)
		c.count(asked, Refused)
	case decision != nil:
		c.endWaiting(one.payment.PaymentID, decision, Answered)
		c.count(asked, Answered)
	default:
		c.lock.Lock()
		waits := c.queue.failed(one, asked.plan.sentTo, time.Now())
		c.queued.Store(int64(len(c.queue.waiting)))
		c.lock.Unlock()
		if !waits {
			c.reconciled(one.standIn, nil, Expired)
		}
		c.count(asked, cause)
	}
}

func (c *Client) endWaiting(paymentID string, decision *Decision, end string) {
	c.lock.Lock()
	one := c.queue.end(paymentID)
	c.queued.Store(int64(len(c.queue.waiting)))
	c.lock.Unlock()
	if one != nil {
		c.reconciled(one.standIn, decision, end)
	}
}

func (c *Client) resolve(hosts []*hostConnections) {
	defer c.background.Done()
	for !c.isClosed.Load() {
		select {
		case <-c.wakeResolver:
		default:
		}
		for _, host := range hosts {
			ctx, cancel := context.WithTimeout(c.ending, resolveTimeout)
			found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host.target.host)
			cancel()
			if err == nil {
				for place, one := range found {
					found[place] = one.Unmap()
				}
				host.setAddresses(found)
			}
		}
		sleep(c.ending, resolveApart)
		timer := time.NewTimer(c.settings.Resolve)
		select {
		case <-c.wakeResolver:
		case <-timer.C:
		case <-c.ending.Done():
		}
		timer.Stop()
	}
}

func sleep(ctx context.Context, pause time.Duration) {
	if ctx.Done() == nil {
		time.Sleep(pause)
		return
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// Hooks

func (c *Client) count(one *call, outcome string) {
	if c.hooks.OnCall != nil {
		defer dropPanic()
		c.hooks.OnCall(one.operation, outcome, time.Since(one.began), one.plan.attempts)
	}
}

func (c *Client) reconciled(standIn, decision *Decision, end string) {
	if c.hooks.OnReconciled != nil {
		defer dropPanic()
		c.hooks.OnReconciled(standIn, decision, end)
	}
}

func (c *Client) shadowed(own any, one *call, decision *Decision, cause string) {
	c.tellShadow(own, decision, cause)
	if decision != nil {
		cause = Answered
	}
	if one != nil {
		c.count(one, cause)
	} else if c.hooks.OnCall != nil {
		defer dropPanic()
		c.hooks.OnCall(operationShadow, cause, 0, 0)
	}
}

func (c *Client) tellShadow(own any, decision *Decision, cause string) {
	if c.hooks.OnShadow != nil {
		defer dropPanic()
		c.hooks.OnShadow(own, decision, cause)
	}
}

func dropPanic() { _ = recover() }
