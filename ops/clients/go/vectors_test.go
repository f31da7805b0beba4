package paywarden

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

// vectorsFolder is where the vectors of all clients are.
const vectorsFolder = "../vectors"

// eachCase runs a test for each case of a file of vectors.
func eachCase[In, Want any](t *testing.T, name string, run func(t *testing.T, given In, want Want)) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(vectorsFolder, name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Cases []struct {
			Name string
			In   json.RawMessage
			Want json.RawMessage
		}
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Cases) == 0 {
		t.Fatal("the file has no cases")
	}
	for _, one := range file.Cases {
		t.Run(one.Name, func(t *testing.T) {
			var given In
			var want Want
			if err := json.Unmarshal(one.In, &given); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(one.Want, &want); err != nil {
				t.Fatal(err)
			}
			run(t, given, want)
		})
	}
}

func equal(t *testing.T, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, wanted %v", got, want)
	}
}

// asJSON returns a value as JSON has it, to be compared with a vector.
func asJSON(t *testing.T, value any) any {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	var found any
	if err := json.Unmarshal(text, &found); err != nil {
		t.Fatal(err)
	}
	return found
}

func TestCardNumbers(t *testing.T) {
	type given struct{ Field, Text string }
	eachCase(t, "card_numbers", func(t *testing.T, in given, want bool) {
		equal(t, isCardNumber(in.Field, in.Text), want)
	})
}

func TestRoutes(t *testing.T) {
	type given struct {
		KeyHex string `json:"key_hex"`
		CardID string `json:"card_id"`
	}
	eachCase(t, "routes", func(t *testing.T, in given, want string) {
		key, _ := hex.DecodeString(in.KeyHex)
		equal(t, RouteOf(key, in.CardID), want)
	})
}

func TestDeadlines(t *testing.T) {
	eachCase(t, "deadlines", func(t *testing.T, leftMS float64, want int) { equal(t, deadlineHeader(leftMS), want) })
}

func TestHosts(t *testing.T) {
	type given struct {
		Key  string
		URLs []string
	}
	eachCase(t, "hosts", func(t *testing.T, in given, want []int) { equal(t, hostOrder(in.Key, in.URLs), want) })
}

func TestRequests(t *testing.T) {
	type given struct {
		Payment     json.RawMessage
		Fields      map[string]any
		Token       string
		RouteKeyHex *string `json:"route_key_hex"`
		Traceparent string
		LeftMS      *float64 `json:"left_ms"`
	}
	type wanted struct {
		Body       any
		Headers    map[string]string
		WrongField *string `json:"wrong_field"`
	}
	eachCase(t, "requests", func(t *testing.T, in given, want wanted) {
		payment, err := paymentOf(in.Payment)
		if err != nil {
			t.Fatal(err)
		}
		payment.Fields = in.Fields
		body, wrong := payment.body()
		if want.WrongField != nil {
			if wrong == nil || wrong.Field != *want.WrongField || wrong.Code != "not_sent" {
				t.Errorf("got %v, wanted a refusal of %s", wrong, *want.WrongField)
			}
			return
		}
		if wrong != nil {
			t.Fatal(wrong)
		}
		equal(t, asJSON(t, json.RawMessage(body)), want.Body)
		leftMS, route := 40.0, ""
		if in.LeftMS != nil {
			leftMS = *in.LeftMS
		}
		if in.RouteKeyHex != nil {
			key, _ := hex.DecodeString(*in.RouteKeyHex)
			route = RouteOf(key, payment.CardID)
		}
		headers := map[string]string{}
		for _, one := range headersOf(deadlineHeader(leftMS), in.Token, route, in.Traceparent) {
			headers[one.name] = one.value
		}
		equal(t, headers, want.Headers)
	})
}

// paymentOf returns the payment of a JSON object with the endpoint's names.
func paymentOf(text []byte) (*Payment, error) {
	var found struct {
		PaymentID        string `json:"payment_id"`
		EventTimeMS      int64  `json:"event_time_ms"`
		CardID           string `json:"card_id"`
		MerchantID       string `json:"merchant_id"`
		AmountMinor      int64  `json:"amount_minor"`
		Currency         string
		DeviceID         string `json:"device_id"`
		IP               string
		MCC              string
		Country, Channel string
		UTCOffsetMinutes *int32 `json:"utc_offset_minutes"`
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&found); err != nil {
		return nil, err
	}
	return &Payment{
		PaymentID: found.PaymentID, EventTimeMS: found.EventTimeMS, CardID: found.CardID, MerchantID: found.MerchantID,
		AmountMinor: found.AmountMinor, Currency: found.Currency, DeviceID: found.DeviceID, IP: found.IP,
		MCC: found.MCC, Country: found.Country, Channel: found.Channel, UTCOffsetMinutes: found.UTCOffsetMinutes,
	}, nil
}

func TestAnswers(t *testing.T) {
	type given struct {
		PaymentID string `json:"payment_id"`
		Status    int
		Body      string
	}
	eachCase(t, "answers", func(t *testing.T, in given, want map[string]any) {
		decision, cause, wrong := readAnswer(in.PaymentID, in.Status, []byte(in.Body))
		switch {
		case decision != nil:
			equal(t, map[string]any{"decision": asJSON(t, decision)}, want)
		case wrong != nil:
			got := map[string]any{"code": wrong.Code, "field": wrong.Field, "message": wrong.Message}
			equal(t, map[string]any{"wrong_request": got}, want)
		default:
			equal(t, map[string]any{"cause": cause}, want)
		}
	})
}

func TestAttempts(t *testing.T) {
	type given struct {
		Order, Avoided []int
		Pinned         *int
		Events         []struct {
			Met    any
			LeftMS float64 `json:"left_ms"`
		}
	}
	eachCase(t, "attempts", func(t *testing.T, in given, want map[string]any) {
		pinned := -1
		if in.Pinned != nil {
			pinned = *in.Pinned
		}
		plan := newPlan(in.Order, in.Avoided, pinned)
		attempts := []any{map[string]any{"host": plan.host, "pause_ms": 0}}
		got := map[string]any{}
		for _, event := range in.Events {
			if event.Met != refused {
				plan.sent()
			}
			met := fmt.Sprint(event.Met)
			left := time.Duration(event.LeftMS * float64(time.Millisecond))
			if pause, again := plan.retry(met, left); again {
				attempts = append(attempts, map[string]any{"host": plan.host, "pause_ms": pause.Milliseconds()})
				continue
			}
			status, isStatus := event.Met.(float64)
			if !isStatus {
				got["cause"] = causeOf(met)
				break
			}
			body := []byte(`{"payment_id": "p", "action": "approve"}`)
			decision, cause, _ := readAnswer("p", int(status), body)
			switch {
			case decision != nil:
				got["answered"] = true
			case cause != "":
				got["cause"] = cause
			default:
				got["refused"] = true
			}
		}
		got["attempts"], got["sent_to"] = attempts, nil
		if plan.sentTo >= 0 {
			got["sent_to"] = plan.sentTo
		}
		equal(t, asJSON(t, got), asJSON(t, want))
	})
}

func TestPolicies(t *testing.T) {
	type wanted struct {
		WrongAt *string `json:"wrong_at"`
	}
	eachCase(t, "policies", func(t *testing.T, in json.RawMessage, want wanted) {
		_, err := ParsePolicy(in)
		if (err == nil) != (want.WrongAt == nil) {
			t.Fatalf("got %v", err)
		}
		if err != nil {
			equal(t, err.(*WrongSettings).Where, *want.WrongAt)
		}
	})
}

func TestStandIns(t *testing.T) {
	type given struct {
		Policy   json.RawMessage
		CardsMax int `json:"cards_max"`
		Steps    []struct {
			NowMS   float64 `json:"now_ms"`
			Cause   string
			Payment json.RawMessage
		}
	}
	type wanted struct {
		Action  string
		Reasons []string
	}
	eachCase(t, "stand_ins", func(t *testing.T, in given, want []wanted) {
		policy, err := ParsePolicy(in.Policy)
		if err != nil {
			t.Fatal(err)
		}
		if in.CardsMax == 0 {
			in.CardsMax = 100_000
		}
		decides := newStandIn(policy, in.CardsMax)
		equal(t, len(in.Steps), len(want))
		for place, step := range in.Steps {
			payment, err := paymentOf(step.Payment)
			if err != nil {
				t.Fatal(err)
			}
			decision := decides.decide(payment, step.Cause, step.NowMS)
			equal(t, wanted{decision.Action, decision.Reasons}, want[place])
			equal(t, decision.Flags, []string{"stand_in"})
			if !decision.StandIn || decision.Score != nil {
				t.Error("it is no stand-in")
			}
		}
	})
}

func TestReconciliation(t *testing.T) {
	type given struct {
		Asked   int
		SinceMS float64 `json:"since_ms"`
	}
	eachCase(t, "reconciliation", func(t *testing.T, in given, want *float64) {
		dueMS, isInTime := nextDueMS(in.Asked, in.SinceMS)
		if isInTime != (want != nil) || (isInTime && dueMS != *want) {
			t.Errorf("got %v, %v", dueMS, isInTime)
		}
	})
}
