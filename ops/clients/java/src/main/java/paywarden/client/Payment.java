package paywarden.client;

import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import java.util.regex.Pattern;

/**
 * An attempt to pay, to be scored.
 *
 * <pre>{@code
 * Payment.of("p-1", System.currentTimeMillis(), "card-000001", "merchant-0001", 4999, "EUR").mcc("5411")
 * }</pre>
 *
 * The methods below return another payment with one field more. A field that is null is not sent.
 */
public final class Payment {
    static final Set<String> NAMES =
            Set.of(
                    "payment_id",
                    "event_time_ms",
                    "card_id",
                    "merchant_id",
                    "amount_minor",
                    "currency",
                    "device_id",
                    "ip",
                    "mcc",
                    "country",
                    "channel",
                    "utc_offset_minutes");

    // From 2000 on and before 2100: no count of seconds or microseconds of these years is one of milliseconds of them.
    private static final long TIME_MS_MIN = 946_684_800_000L;
    private static final long TIME_MS_END = 4_102_444_800_000L;
    static final long AMOUNT_MAX = 100_000_000_000L;
    private static final Pattern CURRENCY = Pattern.compile("[A-Z]{3}");

    /** The endpoint's fields by name, in the order in which they are checked. */
    private final Map<String, Object> values;

    private final Map<String, Object> fields;

    Payment(Map<String, Object> values, Map<String, Object> fields) {
        this.values = values;
        this.fields = fields;
    }

    /**
     * Returns a payment with the fields that every payment has.
     *
     * @param paymentId unique for each attempt, and the idempotency key of its retries
     * @param eventTimeMs milliseconds since 1970 UTC
     * @param cardId a token that stands for the card, never its number
     * @param amountMinor in minor units of {@code currency}: 1050 is 10.50 EUR
     */
    public static Payment of(
            String paymentId, long eventTimeMs, String cardId, String merchantId, long amountMinor, String currency) {
        Map<String, Object> values = new LinkedHashMap<>();
        values.put("payment_id", paymentId);
        values.put("event_time_ms", eventTimeMs);
        values.put("card_id", cardId);
        values.put("merchant_id", merchantId);
        values.put("amount_minor", amountMinor);
        values.put("currency", currency);
        return new Payment(values, Map.of());
    }

    public Payment deviceId(String deviceId) {
        return with("device_id", deviceId);
    }

    public Payment ip(String ip) {
        return with("ip", ip);
    }

    /** A merchant category code of four digits. */
    public Payment mcc(String mcc) {
        return with("mcc", mcc);
    }

    /** Where the payment was made, ISO 3166-1 alpha-2. */
    public Payment country(String country) {
        return with("country", country);
    }

    public Payment channel(String channel) {
        return with("channel", channel);
    }

    /** The payer's local time less UTC. */
    public Payment utcOffsetMinutes(Integer minutes) {
        return with("utc_offset_minutes", minutes);
    }

    /** A field that the service's project declares: a text, a whole number, a double, true or false. */
    public Payment field(String name, Object value) {
        Map<String, Object> more = new LinkedHashMap<>(fields);
        more.put(name, value);
        return new Payment(values, more);
    }

    private Payment with(String name, Object value) {
        Map<String, Object> more = new LinkedHashMap<>(values);
        more.put(name, value);
        return new Payment(more, fields);
    }

    String paymentId() {
        return (String) values.get("payment_id");
    }

    String cardId() {
        return (String) values.get("card_id");
    }

    long amountMinor() {
        return (Long) values.get("amount_minor");
    }

    String currency() {
        return (String) values.get("currency");
    }

    String mcc() {
        return (String) values.get("mcc");
    }

    /**
     * Returns the payment as JSON. Raises WrongRequest: an id is missing, a wrong time, amount or currency, a card
     * number, a name twice.
     */
    byte[] body() {
        for (String name : new String[] {"payment_id", "card_id"}) {
            if (!(values.get(name) instanceof String text) || text.isEmpty()) {
                throw WrongRequest.notSent(name, "is missing or empty");
            }
        }
        long timeMs = (Long) values.get("event_time_ms");
        if (timeMs < TIME_MS_MIN || timeMs >= TIME_MS_END) {
            throw WrongRequest.notSent("event_time_ms", "wanted milliseconds since 1970 UTC, from 2000 to 2099");
        }
        if (amountMinor() < 0 || amountMinor() > AMOUNT_MAX) {
            throw WrongRequest.notSent(
                    "amount_minor", "wanted a whole number of minor units from 0 to " + AMOUNT_MAX);
        }
        if (currency() == null || !CURRENCY.matcher(currency()).matches()) {
            throw WrongRequest.notSent("currency", "wanted three capital letters, A to Z (ISO 4217)");
        }
        for (String name : fields.keySet()) {
            if (NAMES.contains(name)) {
                throw WrongRequest.notSent(name, "is not a field that a project declares");
            }
        }
        StringBuilder out = new StringBuilder(320);
        write(out, values);
        write(out, fields);
        return out.append('}').toString().getBytes(StandardCharsets.UTF_8);
    }

    private static void write(StringBuilder out, Map<String, Object> values) {
        for (Map.Entry<String, Object> entry : values.entrySet()) {
            String name = entry.getKey();
            Object value = entry.getValue();
            if (value == null) {
                continue;
            }
            if (value instanceof String text) {
                if (CardNumbers.isCardNumber(name, text)) {
                    throw WrongRequest.notSent(name, "looks like a real card number; wanted a token that stands for it");
                }
                if (!isUnicode(text)) {
                    throw WrongRequest.notSent(name, "is not valid Unicode text");
                }
            } else if (!(value instanceof Boolean || Json.isNumber(value))) {
                throw WrongRequest.notSent(name, "is no text, number, true or false");
            }
            out.append(out.length() == 0 ? '{' : ',');
            Json.writeText(out, name);
            Json.write(out.append(':'), value);
        }
    }

    /** Returns whether no half of a character stands alone. */
    private static boolean isUnicode(String text) {
        for (int place = 0; place < text.length(); place++) {
            char character = text.charAt(place);
            if (Character.isHighSurrogate(character)
                    && place + 1 < text.length()
                    && Character.isLowSurrogate(text.charAt(place + 1))) {
                place++;
            } else if (Character.isSurrogate(character)) {
                return false;
            }
        }
        return true;
    }
}
