package paywarden.client;

/**
 * The request is wrong: correct it. {@link #field} names the wrong field, or is empty; {@link #code} is the service's, or
 * {@code not_sent} if the client refused the payment. No text of it holds a value of the payment.
 */
public final class WrongRequest extends RuntimeException {
    private static final long serialVersionUID = 1L;

    public final String field;
    public final String code;
    public final String text;
    /** The service's status, or 0. */
    public final int status;

    WrongRequest(String text, String field, String code, int status) {
        super(field.isEmpty() ? text : field + ": " + text);
        this.text = text;
        this.field = field;
        this.code = code;
        this.status = status;
    }

    static WrongRequest notSent(String field, String text) {
        return new WrongRequest(text, field, "not_sent", 0);
    }
}
