package paywarden

import (
	"encoding/json"
	"math"
	"sort"
	"strconv"
	"unicode/utf8"
)

// Payment is an attempt to pay, to be scored. An optional text that is empty is not sent.
type Payment struct {
	// PaymentID is unique for each attempt, and the idempotency key of its retries.
	PaymentID string
	// EventTimeMS is in milliseconds since 1970 UTC.
	EventTimeMS int64
	// CardID is a token that stands for the card, never its number.
	CardID     string
	MerchantID string
	// AmountMinor is in minor units of Currency: 1050 is 10.50 EUR.
	AmountMinor int64
	// Currency is a code of ISO 4217.
	Currency string

	DeviceID string
	IP       string
	MCC      string
	Country  string
	Channel  string
	// UTCOffsetMinutes is the payer's local time less UTC; nil if it is not known.
	UTCOffsetMinutes *int32

	// Fields holds the fields that the service's project declares: texts, numbers, true and false.
	Fields map[string]any
}

var endpointFields = map[string]bool{
	"payment_id": true, "event_time_ms": true, "card_id": true, "merchant_id": true, "amount_minor": true,
	"currency": true, "device_id": true, "ip": true, "mcc": true, "country": true, "channel": true,
	"utc_offset_minutes": true,
}

// From 2000 on and before 2100: no count of seconds or microseconds of these years is one of milliseconds of them.
const timeMSMin, timeMSEnd = 946_684_800_000, 4_102_444_800_000

// body returns the payment as JSON. It refuses a missing id, a wrong time, amount or currency, a card number, a name
// twice, and text that is no Unicode.
func (p *Payment) body() ([]byte, *WrongRequest) {
	if p.PaymentID == "" {
		return nil, notSent("payment_id", "is missing or empty")
	}
	if p.CardID == "" {
		return nil, notSent("card_id", "is missing or empty")
	}
	if p.EventTimeMS < timeMSMin || p.EventTimeMS >= timeMSEnd {
		return nil, notSent("event_time_ms", "wanted milliseconds since 1970 UTC, from 2000 to 2099")
	}
	if p.AmountMinor < 0 || p.AmountMinor > amountMax {
		return nil, notSent("amount_minor", "wanted a whole number of minor units from 0 to 100000000000")
	}
	if !isCurrency(p.Currency) {
		return nil, notSent("currency", "wanted three capital letters, A to Z (ISO 4217)")
	}
	// In an order of their own, so that the same payment gives the same error.
	names := make([]string, 0, len(p.Fields))
	for name := range p.Fields {
		if endpointFields[name] {
			return nil, notSent(name, "is not a field that a project declares")
		}
		names = append(names, name)
	}
	sort.Strings(names)
	writer := bodyWriter{buffer: make([]byte, 0, 320)}
	writer.text("payment_id", p.PaymentID)
	writer.number("event_time_ms", p.EventTimeMS)
	writer.text("card_id", p.CardID)
	writer.text("merchant_id", p.MerchantID)
	writer.number("amount_minor", p.AmountMinor)
	writer.text("currency", p.Currency)
	writer.optional("device_id", p.DeviceID)
	writer.optional("ip", p.IP)
	writer.optional("mcc", p.MCC)
	writer.optional("country", p.Country)
	writer.optional("channel", p.Channel)
	if p.UTCOffsetMinutes != nil {
		writer.number("utc_offset_minutes", int64(*p.UTCOffsetMinutes))
	}
	for _, name := range names {
		writer.value(name, p.Fields[name])
	}
	if writer.wrong != nil {
		return nil, writer.wrong
	}
	return append(writer.buffer, '}'), nil
}

func isCurrency(text string) bool {
	for place := 0; place < len(text); place++ {
		if text[place] < 'A' || text[place] > 'Z' {
			return false
		}
	}
	return len(text) == 3
}

// bodyWriter writes a JSON object and remembers the first wrong field.
type bodyWriter struct {
	buffer []byte
	wrong  *WrongRequest
}

func (w *bodyWriter) name(name string) {
	if len(w.buffer) == 0 {
		w.buffer = append(w.buffer, '{')
	} else {
		w.buffer = append(w.buffer, ',')
	}
	w.buffer = appendText(w.buffer, name)
	w.buffer = append(w.buffer, ':')
}

func (w *bodyWriter) refuse(name, message string) {
	if w.wrong == nil {
		w.wrong = notSent(name, message)
	}
}

func (w *bodyWriter) number(name string, value int64) {
	w.name(name)
	w.buffer = strconv.AppendInt(w.buffer, value, 10)
}

func (w *bodyWriter) optional(name, value string) {
	if value != "" {
		w.text(name, value)
	}
}

func (w *bodyWriter) text(name, value string) {
	if isCardNumber(name, value) {
		w.refuse(name, "looks like a real card number; wanted a token that stands for it")
	} else if !utf8.ValidString(value) {
		w.refuse(name, "is not valid Unicode text")
	}
	w.name(name)
	w.buffer = appendText(w.buffer, value)
}

func (w *bodyWriter) value(name string, value any) {
	if !utf8.ValidString(name) {
		w.refuse("", "a name of a field is not valid Unicode text")
		return
	}
	switch value := value.(type) {
	case nil:
	case string:
		w.text(name, value)
	case bool:
		w.name(name)
		w.buffer = strconv.AppendBool(w.buffer, value)
	case int:
		w.number(name, int64(value))
	case int32:
		w.number(name, int64(value))
	case int64:
		w.number(name, value)
	case float64:
		if math.IsNaN(value) || math.IsInf(value, 0) {
			w.refuse(name, "is no finite number")
			return
		}
		w.name(name)
		w.buffer = strconv.AppendFloat(w.buffer, value, 'g', -1, 64)
	case json.Number:
		w.name(name)
		w.buffer = append(w.buffer, value...)
	default:
		w.refuse(name, "is no text, number, true or false")
	}
}

// appendText appends a text as JSON.
func appendText(buffer []byte, text string) []byte {
	const digits = "0123456789abcdef"
	buffer = append(buffer, '"')
	begin := 0
	for place := 0; place < len(text); place++ {
		character := text[place]
		if character >= ' ' && character != '"' && character != '\\' && character != 0x7f {
			continue
		}
		buffer = append(buffer, text[begin:place]...)
		if character == '"' || character == '\\' {
			buffer = append(buffer, '\\', character)
		} else {
			buffer = append(buffer, '\\', 'u', '0', '0', digits[character>>4], digits[character&15])
		}
		begin = place + 1
	}
	buffer = append(buffer, text[begin:]...)
	return append(buffer, '"')
}
