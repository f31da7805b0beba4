package paywarden

import "fmt"

// WrongRequest says that a payment cannot be scored as it is: correct the request. Its text holds no value of the payment.
type WrongRequest struct {
	// Field is the wrong field, or empty.
	Field string
	// Code is the service's, or "not_sent" if the client refused the payment.
	Code    string
	Message string
	// Status is the service's, or 0.
	Status int
}

func (e *WrongRequest) Error() string {
	if e.Field == "" {
		return e.Message
	}
	return e.Field + ": " + e.Message
}

func notSent(field, message string) *WrongRequest {
	return &WrongRequest{Field: field, Code: "not_sent", Message: message}
}

// WrongSettings says that a client cannot be made. Where is the setting, or the path in a policy, such as
// limits[1].amount_over.EUR.
type WrongSettings struct {
	Where   string
	Message string
}

func (e *WrongSettings) Error() string {
	if e.Where == "" {
		return e.Message
	}
	return e.Where + ": " + e.Message
}

func wrongSettings(where, format string, values ...any) *WrongSettings {
	return &WrongSettings{Where: where, Message: fmt.Sprintf(format, values...)}
}
