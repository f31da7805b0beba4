// The driver of the Go client, which tests and benchmarks talk to. ops/clients/SPECIFICATION.md says what it reads and
// prints.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"paywarden"
)

// A call that begins later than this after its time says that the driver was the bottleneck.
const lateCall = 5 * time.Millisecond

type line struct {
	Settings    json.RawMessage
	Score       *payment
	DeadlineMS  *float64 `json:"deadline_ms"`
	Traceparent string
	Shadow      *payment
	Own         string
	Load, Bare  *load
	Close       bool
}

type payment struct {
	PaymentID        string         `json:"payment_id"`
	EventTimeMS      int64          `json:"event_time_ms"`
	CardID           string         `json:"card_id"`
	MerchantID       string         `json:"merchant_id"`
	AmountMinor      int64          `json:"amount_minor"`
	Currency         string         `json:"currency"`
	DeviceID         string         `json:"device_id,omitempty"`
	IP               string         `json:"ip,omitempty"`
	MCC              string         `json:"mcc,omitempty"`
	Country          string         `json:"country,omitempty"`
	Channel          string         `json:"channel,omitempty"`
	UTCOffsetMinutes *int32         `json:"utc_offset_minutes,omitempty"`
	Fields           map[string]any `json:"fields,omitempty"`
}

func (p *payment) whole() *paywarden.Payment {
	return &paywarden.Payment{
		PaymentID: p.PaymentID, EventTimeMS: p.EventTimeMS, CardID: p.CardID, MerchantID: p.MerchantID,
		AmountMinor: p.AmountMinor, Currency: p.Currency, DeviceID: p.DeviceID, IP: p.IP, MCC: p.MCC,
		Country: p.Country, Channel: p.Channel, UTCOffsetMinutes: p.UTCOffsetMinutes, Fields: p.Fields,
	}
}

type load struct {
	Rate, Seconds float64
	ID            string
	Cards         int
}

// printer writes lines. While a load runs, events are dropped.
type printer struct {
	lock      sync.Mutex
	encoder   *json.Encoder
	isLoading atomic.Bool
}

func (p *printer) say(values map[string]any) {
	p.lock.Lock()
	defer p.lock.Unlock()
	if err := p.encoder.Encode(values); err != nil {
		panic(err)
	}
}

func (p *printer) event(name string, values map[string]any) {
	if !p.isLoading.Load() {
		values["event"] = name
		p.say(values)
	}
}

type own struct{ paymentID, action string }

func (p *printer) hooks(events []string) paywarden.Hooks {
	actionOf := func(decision *paywarden.Decision) any {
		if decision == nil {
			return nil
		}
		return decision.Action
	}
	hooks := paywarden.Hooks{
		OnReconciled: func(standIn, decision *paywarden.Decision, end string) {
			p.event("reconciled", map[string]any{
				"payment_id": standIn.PaymentID, "end": end, "action": actionOf(decision),
			})
		},
		OnShadow: func(given any, decision *paywarden.Decision, cause string) {
			mine := given.(own)
			p.event("shadow", map[string]any{
				"payment_id": mine.paymentID, "own": mine.action, "action": actionOf(decision), "cause": cause,
			})
		},
	}
	if slices.Contains(events, "call") {
		hooks.OnCall = func(operation, outcome string, _ time.Duration, attempts int) {
			p.event("call", map[string]any{"operation": operation, "outcome": outcome, "attempts": attempts})
		}
	}
	return hooks
}

// settingsOf returns the settings of a line. A number of 0 is wrong here, where the client takes its default.
func settingsOf(text []byte) (paywarden.Settings, []string, error) {
	var found struct {
		URLs             json.RawMessage
		DeadlineMS       *float64 `json:"deadline_ms"`
		Token            *string
		RouteKeyHex      *string `json:"route_key_hex"`
		Policy           json.RawMessage
		ConnectionsMax   *int     `json:"connections_max"`
		IdleMS           *float64 `json:"idle_ms"`
		ConnectTimeoutMS *float64 `json:"connect_timeout_ms"`
		ResolveS         *float64 `json:"resolve_s"`
		QueueMax         *int     `json:"queue_max"`
		ShadowMax        *int     `json:"shadow_max"`
		CardsMax         *int     `json:"cards_max"`
		CA               string
		Certificate, Key string
		Events           []string
	}
	if err := json.Unmarshal(text, &found); err != nil {
		return paywarden.Settings{}, nil, err
	}
	settings := paywarden.Settings{CA: found.CA, Certificate: found.Certificate, Key: found.Key}
	var single string
	if json.Unmarshal(found.URLs, &single) == nil {
		settings.URLs = []string{single}
	} else if err := json.Unmarshal(found.URLs, &settings.URLs); err != nil {
		return settings, nil, err
	}
	setDuration(&settings.Deadline, found.DeadlineMS, time.Millisecond)
	setDuration(&settings.Idle, found.IdleMS, time.Millisecond)
	setDuration(&settings.ConnectTimeout, found.ConnectTimeoutMS, time.Millisecond)
	setDuration(&settings.Resolve, found.ResolveS, time.Second)
	setCount(&settings.ConnectionsMax, found.ConnectionsMax)
	setCount(&settings.ShadowMax, found.ShadowMax)
	setCount(&settings.CardsMax, found.CardsMax)
	if found.QueueMax != nil {
		settings.QueueMax, settings.NoQueue = *found.QueueMax, *found.QueueMax == 0
	}
	if found.Token != nil {
		settings.Token = *found.Token
	}
	if found.RouteKeyHex != nil {
		key, err := hex.DecodeString(*found.RouteKeyHex)
		if err != nil {
			return settings, nil, err
		}
		settings.RouteKey = key
	}
	if found.Policy != nil {
		policy, err := paywarden.ParsePolicy(found.Policy)
		if err != nil {
			return settings, nil, err
		}
		settings.Policy = policy
	}
	return settings, found.Events, nil
}

func setDuration(setting *time.Duration, given *float64, unit time.Duration) {
	if given != nil {
		if *setting = time.Duration(*given * float64(unit)); *setting == 0 {
			*setting = -1
		}
	}
}

func setCount(setting *int, given *int) {
	if given != nil {
		if *setting = *given; *setting == 0 {
			*setting = -1
		}
	}
}

// runLoad makes the calls of a load. call returns nil for a failure.
func runLoad(given *load, deadline time.Duration, call func(*payment) *paywarden.Decision) map[string]any {
	count := int(given.Rate * given.Seconds)
	took := make([]time.Duration, count)
	var lock sync.Mutex
	answered, failed, late := 0, 0, 0
	standIns := map[string]int{}
	var calls sync.WaitGroup
	cpu := cpuTime()
	begin := time.Now()
	for number := range count {
		due := begin.Add(time.Duration(float64(number) / given.Rate * float64(time.Second)))
		if wait := time.Until(due); wait > 0 {
			time.Sleep(wait)
		}
		calls.Add(1)
		go func() {
			defer calls.Done()
			one := paymentOfLoad(given, number)
			began := time.Now()
			decision := call(one)
			took[number] = time.Since(began)
			lock.Lock()
			defer lock.Unlock()
			if began.Sub(due) > lateCall {
				late++
			}
			switch {
			case decision == nil:
				failed++
			case decision.StandIn:
				standIns[strings.TrimPrefix(decision.Reasons[0], "stand_in:")]++
			default:
				answered++
			}
		}()
	}
	calls.Wait()
	used := cpuTime() - cpu
	slices.Sort(took)
	at := func(share float64) float64 {
		if count == 0 {
			return 0
		}
		return milliseconds(took[min(int(share*float64(count)), count-1)])
	}
	return map[string]any{
		"calls": count, "answered": answered, "stand_ins": standIns, "failed": failed,
		"cpu_us": float64(used.Microseconds()) / float64(max(count, 1)), "late_calls": late,
		"p50_ms": at(0.5), "p99_ms": at(0.99),
		"over_p99_9_ms": at(0.999) - milliseconds(deadline), "over_max_ms": at(1) - milliseconds(deadline),
	}
}

func paymentOfLoad(given *load, number int) *payment {
	return &payment{
		PaymentID: fmt.Sprintf("%s-%d", given.ID, number), EventTimeMS: time.Now().UnixMilli(),
		CardID: fmt.Sprintf("card-%06d", number%given.Cards), MerchantID: fmt.Sprintf("merchant-%04d", number%100),
		AmountMinor: int64(1000 + number%5000), Currency: "EUR",
	}
}

func milliseconds(duration time.Duration) float64 {
	return float64(duration) / float64(time.Millisecond)
}

func cpuTime() time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		panic(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// bareCall returns a call through net/http, with its connections and no rules.
func bareCall(settings *paywarden.Settings) func(*payment) *paywarden.Decision {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	return func(one *payment) *paywarden.Decision {
		body, err := json.Marshal(one)
		if err != nil {
			return nil
		}
		url := strings.TrimRight(settings.URLs[0], "/") + "/v1/score"
		request, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
		if err != nil {
			return nil
		}
		request.Header.Set("Content-Type", "application/json")
		if settings.Token != "" {
			request.Header.Set("Authorization", "Bearer "+settings.Token)
		}
		answer, err := client.Do(request)
		if err != nil {
			return nil
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		decision := &paywarden.Decision{}
		if err != nil || answer.StatusCode != http.StatusOK || json.Unmarshal(text, decision) != nil {
			return nil
		}
		return decision
	}
}

func main() {
	out := &printer{encoder: json.NewEncoder(os.Stdout)}
	out.encoder.SetEscapeHTML(false)
	in := bufio.NewReader(os.Stdin)
	var client *paywarden.Client
	var settings paywarden.Settings
	for {
		text, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var given line
		if err := json.Unmarshal(text, &given); err != nil {
			panic(err)
		}
		switch {
		case given.Settings != nil:
			if client != nil {
				client.Close()
				client = nil
			}
			var events []string
			settings, events, err = settingsOf(given.Settings)
			if err == nil {
				client, err = paywarden.New(settings, out.hooks(events))
			}
			var wrong *paywarden.WrongSettings
			switch {
			case errors.As(err, &wrong):
				client = nil
				out.say(map[string]any{"wrong_settings": wrong.Where})
			case err != nil:
				panic(err)
			default:
				out.say(map[string]any{"ready": "go"})
			}
		case given.Score != nil:
			options := paywarden.Options{Traceparent: given.Traceparent}
			setDuration(&options.Deadline, given.DeadlineMS, time.Millisecond)
			out.say(scored(client.ScoreWith(context.Background(), given.Score.whole(), options)))
		case given.Shadow != nil:
			mine := paywarden.Shadow(client, given.Shadow.whole(), own{given.Shadow.PaymentID, given.Own})
			out.say(map[string]any{"own": mine.action})
		case given.Load != nil || given.Bare != nil:
			deadline := settings.Deadline
			if deadline == 0 {
				deadline = 40 * time.Millisecond
			}
			call := func(one *payment) *paywarden.Decision {
				decision, _ := client.Score(context.Background(), one.whole())
				return decision
			}
			plan := given.Load
			if plan == nil {
				plan, call = given.Bare, bareCall(&settings)
			}
			out.isLoading.Store(true)
			report := runLoad(plan, deadline, call)
			out.isLoading.Store(false)
			out.say(map[string]any{"load": report})
		case given.Close:
			if client != nil {
				client.Close()
			}
			out.say(map[string]any{"closed": true})
			return
		}
	}
}

func scored(decision *paywarden.Decision, err error) map[string]any {
	var wrong *paywarden.WrongRequest
	if errors.As(err, &wrong) {
		return map[string]any{"wrong_request": map[string]any{
			"code": wrong.Code, "field": wrong.Field, "message": wrong.Message,
		}}
	}
	return map[string]any{"decision": decision}
}
